"""Whatever a row, a file name or an error message holds, every medium shows it as text, and none shows a password."""

import io
import logging

import pytest
from markdown_it import MarkdownIt  # comes with rich
from rich.console import Console

from training_core.config import SettingsError, read_settings
from training_core.escaping import in_markdown, on_one_line, shown, without_secrets
from training_core.grid import Grid
from training_core.pages import page_environment
from training_core.utils import setup_logging

HOSTILE = (
    *("<script>alert(1)</script>", "[free](https://evil.example)", "![](https://evil.example/x.png)", "a | b \\| c"),
    *("`code`", "# heading", "- item", "1. item", "*b* _i_ ~~s~~", "https://evil.example", "www.evil.example"),
    *("me@evil.example", "\x1b[2J\x1b[31mred", "\x9b31m", "\x07\x08\r", "\u202egnp.exe", "\u2028line", "&amp; &lt;"),
)


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("postgresql://user:pw@host/db", "postgresql://***@host/db"),
        ("no answer from http://user:p@w@host:5000/api (timeout)", "no answer from http://***@host:5000/api (timeout)"),
        ("postgresql+asyncpg://user:p/w@host/db", "postgresql+asyncpg://***@host/db"),
        ("https://token@host/x", "https://***@host/x"),
        ("s3://key:secret@bucket/x", "s3://***@bucket/x"),
        ("https://host/x?X-Amz-Signature=abc&part=1", "https://host/x?X-Amz-Signature=***&part=1"),
        ("https://host/x?sv=2&sig=a%2Fb", "https://host/x?sv=2&sig=***"),
    ],
)
def test_passwords_in_addresses_are_hidden(text: str, hidden: str) -> None:
    assert without_secrets(text) == shown(text) == hidden


@pytest.mark.parametrize(
    "text",
    [
        *("models:/name@champion", "http://host:4200/api@x", "github://org:repo@main/rows.jsonl", "sqlite:////a/b.db"),
        *("hf://datasets/a@main/b", "s3://bucket/x@y?design=3", "mail me@example.com, see http://host:5000"),
    ],
)
def test_addresses_without_a_password_are_shown_whole(text: str) -> None:
    assert shown(text) == text


def test_text_on_one_line_is_cut_and_safe_for_a_terminal() -> None:
    assert on_one_line("a\n\tb\x1b[31m" + "c" * 300, 8) == "a b\\x1b[31m …"


@pytest.mark.parametrize("part", ["://a:b", "https://a", "?a", "token", "://1:1", "@://a:b", "?token"])
def test_long_text_is_shown_in_a_moment(part: str) -> None:
    """Where each place in the text leads to a search of all that follows, this takes minutes."""
    assert shown(f"?{part * 100_000}")


def test_long_passwords_are_hidden() -> None:
    assert shown(f"https://user:{'s' * 5_000}@host") == "https://***@host"


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_any_text_as_it_is(text: str) -> None:
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    grid = Grid("Title", ("name", "text"), [("a", text)], note=text)
    tokens = reader.parse(grid.markdown())
    kinds = {inner.type for token in tokens for inner in (token, *(token.children or []))}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "code_inline", "em_open", "s_open"}
    assert not kinds & {"heading_open", "bullet_list_open", "ordered_list_open"}
    cells = [token.content for token in tokens if token.type == "inline"]
    assert len(cells) == 6, "title, two heads, two cells, note"
    (note,) = tokens[-2:-1]
    assert "".join(inner.content for inner in note.children or []) == shown(" ".join(text.split()))


@pytest.mark.parametrize("text", HOSTILE)
def test_terminal_gets_no_control_characters(text: str) -> None:
    stream = io.StringIO()
    grid = Grid(text, (text, "text"), [("a", text)], note=text)
    Console(file=stream, width=80, force_terminal=False).print(grid.terminal())
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue() == shown(stream.getvalue())


@pytest.mark.parametrize("text", HOSTILE)
def test_page_shows_any_text_as_it_is(text: str) -> None:
    page = page_environment().from_string('<p title="{{ text }}">{{ text }}</p>').render(text=text)
    assert "<script" not in page
    assert page == shown(page)


@pytest.mark.parametrize("text", HOSTILE)
def test_log_lines_hold_no_control_characters(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    factory = logging.getLogRecordFactory()
    setup_logging()
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    log = logging.getLogger("training_core.hostile")
    log.addHandler(handler)
    try:
        log.warning("%s of postgresql://me:secret@host/db", text)
        raise OSError(f"{text} postgresql://me:secret@host/db")
    except OSError:
        log.exception("it failed")
    finally:
        log.removeHandler(handler)
        logging.setLogRecordFactory(factory)
    assert stream.getvalue() == shown(stream.getvalue())
    assert "secret" not in stream.getvalue()
    assert "Traceback" in stream.getvalue()


def test_log_records_of_others_are_rebuilt_as_they_were() -> None:
    """As handlers that send records to another process or format them once more do."""
    factory = logging.getLogRecordFactory()
    record = logging.LogRecord("other", logging.INFO, "", 0, "step %s", (3,), None)
    setup_logging()
    try:
        assert logging.makeLogRecord(vars(record)).getMessage() == "step 3"
    finally:
        logging.setLogRecordFactory(factory)


@pytest.mark.parametrize("name", ["dataset_path", "eval_path", "output_dir", "cache_dir", "model_name"])
def test_settings_hold_no_passwords(name: str) -> None:
    with pytest.raises(SettingsError, match=rf"{name}: expected an address without a password") as caught:
        read_settings({name: "s3://key:secret@bucket/rows"})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("sign", ["\x1b[31m", "\n", "\t", "\u202e"])
def test_settings_hold_no_control_characters(sign: str) -> None:
    with pytest.raises(SettingsError, match=r"group_by: expected a text without control characters") as caught:
        read_settings({"group_by": f"a{sign}b"})
    assert sign not in caught.value.problems[0]


def test_errors_of_settings_hold_no_passwords_and_no_control_characters() -> None:
    assert SettingsError(["a\x1b[31m http://me:secret@host"]).problems == ["a\\x1b[31m http://***@host"]


def test_one_line_of_markdown_stays_one() -> None:
    assert in_markdown("a\n\n# b") == "a # b"
