"""The page on rows shows the whole report, loads nothing and escapes all texts of rows."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.image import imread
from sample_report import ACCOUNT, LENGTHS, report

from samples.cases import generate_rows
from training_core.config import RunConfig
from training_core.data_loader import build_datasets
from training_core.dataset.page import render_page
from training_core.dataset.report import Account, DataReport, DecisionCount, Finding, Lengths
from training_core.model_setup import load_tokenizer
from training_core.rows.strict_json import Problem

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCRIPT = "<script>document.title='run'</script>"
NO_LINES = Account("x", "unknown", 0, 0, 0, 0, 0, 0)
UNFIT = "rows.jsonl: expected at most 10% rejected lines, got 9 of 15; fix them"

needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on the PATH")


class _Page(HTMLParser):
    """Tags, attributes and texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def hostile() -> DataReport:
    """A report with a script in every text that can come from a row or a file name."""
    account = Account(f"/x/{SCRIPT}.jsonl", SCRIPT, *[15, 5, 4, 3, 2, 1])
    return report(
        accounts=[account],
        decisions=[DecisionCount(SCRIPT, 1, 1), DecisionCount('"><img src=x onerror=alert(1)>', 1, 1)],
        findings=[Finding(SCRIPT, 1, SCRIPT, [SCRIPT])],
        failures=[SCRIPT],
        problems=[Problem(account.file, 1, SCRIPT, SCRIPT, SCRIPT)],
        packing=SCRIPT,
    )


def test_page_shows_the_whole_report() -> None:
    text = " ".join(" ".join(_Page(render_page(report(failures=[UNFIT]))).texts).split())
    parts = ("NOT fit to train on", UNFIT, "rows.jsonl", "native", "Lengths of 10 rows", "max_seq_length 2,048")
    more = (
        "Eligible",
        "exact duplicates: 3",
        "rows.jsonl:1 = rows.jsonl:2",
        "expected a non-empty string, got 5",
        "write a non-empty string",
        "700 tokens",
    )
    for part in (*parts, *more, "/some/where/rows.jsonl", "Rejected lines: 2 of 15", "5 trained and 4 held-out rows"):
        assert part in text, part


def test_page_escapes_texts_of_rows() -> None:
    page = _Page(render_page(hostile()))
    assert not {"script", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert sum(text.count(SCRIPT) for text in page.texts) >= 10


def test_page_escapes_scripts_in_a_file_of_rows(tiny_base: Path, tmp_path: Path) -> None:
    """In a decision, a key, a value, a line of invalid JSON and the file name."""
    rows = [*generate_rows(30, seed=3)]
    rows[0][SCRIPT] = SCRIPT
    for row in rows[:2]:
        row["output"]["decision"] = SCRIPT
    rows[2]["output"] = SCRIPT
    path = tmp_path / f"{SCRIPT.replace('/', '')}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + SCRIPT, encoding="utf-8")
    (tmp_path / "out").mkdir()
    config = RunConfig(dataset_path=str(path), max_seq_length=4096)
    build_datasets(config, load_tokenizer(tiny_base), tmp_path / "out")
    page = _Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert sum(text.count("<script>") for text in page.texts) >= 5


def test_page_loads_no_external_resource() -> None:
    page = _Page(render_page(report()))
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    values = [value for name, value in page.attributes if name in ("href", "src", "srcset", "data", "xlink:href")]
    assert set(values) == {"report.json", "problems.jsonl", "rejected.jsonl"}
    assert not re.search(r"https?://|@import|url\(", render_page(report()))
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_page_of_equal_reports_is_equal() -> None:
    assert render_page(report()) == render_page(report())


@pytest.mark.parametrize(
    "changes",
    [
        {"decisions": [], "lengths": Lengths(16, {}, [], []), "findings": [], "problems": [], "packing": ""},
        {"accounts": [NO_LINES], "decisions": [], "lengths": Lengths(16, {}, [], []), "problems": []},
        {"decisions": [DecisionCount(f"d{n}", n, 0) for n in range(40)]},
        {"lengths": Lengths(100, LENGTHS.percentiles, [800, 801], [1])},
        {"accounts": [ACCOUNT] * 3},
    ],
    ids=["bare", "no lines", "many decisions", "all too long", "files"],
)
def test_page_can_be_rendered_for_every_report(changes: dict[str, object]) -> None:
    assert "nan" not in render_page(report(**changes))


def browse(page: str, folder: Path, *flags: str) -> str:
    """The output of headless Chromium for a page."""
    (folder / "page.html").write_text(page, encoding="utf-8")
    own = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'browser'}"]
    command = [str(BROWSER), *own, *flags, (folder / "page.html").as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.browser
@needs_browser
def test_page_in_a_browser_runs_no_script(tmp_path: Path) -> None:
    page = browse(render_page(hostile()), tmp_path, "--dump-dom")
    found = _Page(page)
    assert "<title>Rows: NOT fit to train on</title>" in page
    assert found.tags.count("table") == 4
    assert found.tags.count("svg") == 3
    assert "script" not in found.tags
    assert any(text.startswith("NOT fit") for text in found.texts)


@pytest.mark.browser
@needs_browser
@pytest.mark.parametrize(("width", "scheme"), [(1100, 1), (500, 0)], ids=["wide and light", "phone and dark"])
def test_page_in_a_browser_follows_the_colour_scheme(tmp_path: Path, width: int, scheme: int) -> None:
    flags = [f"--window-size={width},900", f"--blink-settings=preferredColorScheme={scheme}"]
    browse(render_page(report()), tmp_path, *flags, f"--screenshot={tmp_path / 'page.png'}")
    picture = imread(tmp_path / "page.png")[:, :, :3]
    assert picture.shape[1] == width
    assert (picture.mean() > 0.5) == bool(scheme)
    assert picture.std() > 0.05
