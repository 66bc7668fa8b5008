"""Every line ends in exactly one account, and every answer is learnt whole."""

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from samples.bad_lines import SPOILERS, plant_bad_lines
from samples.cases import generate_rows, policy_names, policy_text, write_rows
from training_core.chat_encoding import ChatEncoder
from training_core.config import RunConfig
from training_core.data_loader import (
    IGNORED_LABEL,
    SYSTEM_TEXT,
    Account,
    TrainingData,
    build_assistant_message,
    build_datasets,
    build_user_message,
    format_as_chat,
    load_jsonl,
)
from training_core.evaluation import parse_answer, prompt_of
from training_core.model_setup import load_tokenizer
from training_core.rows import DataError

Record = dict[str, Any]


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(tiny_base)


def record(case: Record | None = None, output: Record | None = None, **more: Any) -> Record:
    """A short row; equal arguments give equal rows."""
    return {
        "instruction": "Decide this case.",
        "input": {"case_id": "A-1", "issue_type": "return", **(case or {}), "policy_document": "Within 30 days."},
        "output": {"decision": "Eligible", "reason": "Day 3.", "customer_response": "Yes.", "next_action": "Refund"}
        | (output or {}),
    } | more


def records(count: int, start: int = 0) -> list[Record]:
    return [record({"case_id": f"A-{i}"}) for i in range(start, start + count)]


def write(path: Path, rows: Sequence[Record | bytes]) -> str:
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return str(path)


def build(path: Path | str, tokenizer: PreTrainedTokenizerFast, **settings: Any) -> TrainingData:
    defaults = {"max_seq_length": 4096, "val_split": 0.3, "max_refused_share": 0.9}
    return build_datasets(RunConfig(dataset_path=str(path), **defaults | settings), tokenizer)


def lines_of(data: TrainingData) -> tuple[set[int], set[int]]:
    return set(data.train["line"]), set(data.held_out["line"])


def answer_ids(row: Record) -> list[int]:
    return [label for label in row["labels"] if label != IGNORED_LABEL]


# Reading a file


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_a_byte_order_mark_change_nothing(tmp_path: Path, line_end: bytes, mark: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(mark + line_end.join(json.dumps(row).encode() for row in records(5)))
    loaded = load_jsonl(path)
    assert [row.record for row in loaded.rows] == records(5)
    assert [row.line for row in loaded.rows] == [1, 2, 3, 4, 5]


def test_lines_end_at_a_newline_only(tmp_path: Path) -> None:
    """`str.splitlines` would break rows at U+2028 and U+0085."""
    rows = [record({"case_id": "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"}), *records(2)]
    assert [row.record for row in load_jsonl(write(tmp_path / "rows.jsonl", rows)).rows] == rows


def test_blank_lines_count_nowhere_and_line_numbers_stay_true(tmp_path: Path) -> None:
    first, second = records(2)
    loaded = load_jsonl(
        write(tmp_path / "rows.jsonl", [b"", first, b"  \t", b"\r", second, b"", b"{", b"\xef\xbb\xbf"])
    )
    assert [row.line for row in loaded.rows] == [2, 5]
    assert [problem.line for problem in loaded.problems] == [7]
    assert loaded.lines == 3


@pytest.mark.parametrize("raw", [b"\xbf\xbf", b"\xef\xbb", "ﻻ".encode(), b"\x00", b"\x0b", b"\xc2\xa0"])
def test_only_white_space_is_blank(tmp_path: Path, raw: bytes) -> None:
    """A line that is thrown away must show in the account."""
    loaded = load_jsonl(write(tmp_path / "rows.jsonl", [raw]))
    assert loaded.refused == [raw + b"\n"]
    assert loaded.lines == len(loaded.problems) == 1


@pytest.mark.parametrize("content", [b"", b"\n\n\n", b"\xef\xbb\xbf"])
def test_a_file_without_lines_holds_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    assert load_jsonl(path).lines == 0


def test_a_file_cut_off_in_its_last_line_loses_that_line_alone(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "rows.jsonl", records(3)))
    path.write_bytes(path.read_bytes()[:-9])
    loaded = load_jsonl(path)
    assert [row.line for row in loaded.rows] == [1, 2]
    assert [problem.line for problem in loaded.problems] == [3]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
def test_another_encoding_is_refused_and_never_garbled(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "rows.jsonl"
    text = "".join(json.dumps(record({"case_id": f"é{i}"}), ensure_ascii=False) + "\n" for i in range(3))
    path.write_bytes(text.encode(encoding))
    loaded = load_jsonl(path)
    assert not loaded.rows
    assert loaded.lines == len(loaded.refused) == len(loaded.problems) > 0


@pytest.mark.parametrize("separator", [b"\r", b" ", b""])
def test_rows_on_one_line_are_refused_not_lost(tmp_path: Path, separator: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(separator.join(json.dumps(row).encode() for row in records(3)))
    loaded = load_jsonl(path)
    assert (len(loaded.rows), len(loaded.refused), loaded.lines) == (0, 1, 1)


def test_refused_lines_are_kept_byte_for_byte(tmp_path: Path) -> None:
    lines = list(plant_bad_lines(generate_rows(300, seed=3), share=0.5, seed=3))
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(line.data for line in lines))
    refused = [line.data for line in lines if line.kind in SPOILERS and line.kind != "overlong"]
    loaded = load_jsonl(path)
    assert loaded.refused == refused
    assert [problem.line for problem in loaded.problems] == [
        number for number, line in enumerate(lines, 1) if line.data in refused
    ]


@pytest.mark.parametrize("path", ["nowhere.jsonl", "."])
def test_a_file_that_cannot_be_read_is_an_os_error(tmp_path: Path, path: str) -> None:
    with pytest.raises(OSError):
        load_jsonl(tmp_path / path)


# Messages


def test_the_policy_stands_once_and_before_all_that_differs() -> None:
    row = record({"case_id": "A-77"})
    system, user, assistant = format_as_chat(row)
    assert (system["role"], user["role"], assistant["role"]) == ("system", "user", "assistant")
    assert system["content"] == SYSTEM_TEXT
    assert user["content"].count("Within 30 days.") == 1
    assert user["content"].index("Within 30 days.") < user["content"].index("Decide this case.")
    assert user["content"].index("Within 30 days.") < user["content"].index("A-77")
    assert "policy_document" not in user["content"]


def test_a_long_policy_stands_in_the_prompt_whole() -> None:
    policy = "\n".join(f"Section {i}: within {i} days." for i in range(3000))
    row = record()
    row["input"]["policy_document"] = policy
    assert policy in build_user_message(row)


def test_the_answer_is_the_output_as_one_line_of_json_in_its_order() -> None:
    row = record(output={"decision": "é\n\u2028", "extra": [1, {"b": 2, "a": None}]})
    text = build_assistant_message(row)
    assert "\n" not in text
    assert json.loads(text) == row["output"]
    assert list(json.loads(text)) == list(row["output"])


def test_a_case_without_answer_has_the_prompt_of_its_row() -> None:
    """What is registered gets cases without output; training got them with it."""
    row = record()
    case = {name: value for name, value in row.items() if name != "output"}
    assert format_as_chat(case) == format_as_chat(row)[:-1]


def test_building_messages_leaves_the_row_as_it_was() -> None:
    row = record()
    format_as_chat(row)
    assert row == record()


# The account


def test_the_account_of_planted_bad_lines_is_exact(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "rows.jsonl"
    planted = write_rows(path, 400, seed=5, bad_share=0.3)
    assert all(planted.get(kind, 0) > 1 for kind in (*SPOILERS, "duplicate"))
    data = build(path, tokenizer)
    (account,) = data.report.accounts
    assert account.lines == planted["lines"] == 400
    assert account.overlong == planted["overlong"]
    assert account.refused == sum(planted[kind] for kind in SPOILERS) - planted["overlong"] == len(data.refused)
    # A duplicate is a copy of a good line; nothing else is twice in the file.
    assert account.duplicates == planted["duplicate"]
    assert account.trained + account.held_out == planted["good"]
    assert (len(data.train), len(data.held_out)) == (account.trained, account.held_out)
    assert sum(data.report.decisions.values()) == planted["good"]
    assert len(data.report.problems) == account.refused


def test_an_account_that_does_not_add_up_cannot_be_made() -> None:
    with pytest.raises(AssertionError):
        Account(file="x", lines=10, trained=5, held_out=1, duplicates=1, refused=1, overlong=1)


def test_every_file_has_an_account_of_its_own(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = write(tmp_path / "rows.jsonl", [*records(6), b"{", records(1)[0]])
    held_out = write(tmp_path / "held_out.jsonl", [*records(3, start=100), b"[", b"]", *records(1)])
    data = build(rows, tokenizer, eval_path=held_out)
    accounts = {account.file: account for account in data.report.accounts}
    assert accounts[held_out] == Account(held_out, 6, trained=0, held_out=4, duplicates=0, refused=2, overlong=0)
    assert accounts[rows] == Account(rows, 8, trained=5, held_out=0, duplicates=2, refused=1, overlong=0)


def test_a_row_seen_before_is_a_duplicate_whatever_its_spelling(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The order of its keys, escapes and white space between them are spelling; a different answer is not."""
    first, *others = records(8)
    turned = {
        name: dict(reversed(value.items())) if isinstance(value, dict) else value for name, value in first.items()
    }
    spelled = [json.dumps(turned).encode(), json.dumps(first, indent=1).replace("\n", " ").encode()]
    contradiction = record({"case_id": "A-0"}, {"decision": "Not Eligible"})
    data = build(write(tmp_path / "rows.jsonl", [first, *others, *spelled, contradiction]), tokenizer)
    assert data.report.accounts[0].duplicates == 2
    assert data.report.decisions == {"Eligible": 8, "Not Eligible": 1}


def test_no_prompt_of_the_evaluation_file_is_trained_on(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """With whatever answer, for the prompt would give the answer away."""
    leak = record({"case_id": "A-1"}, {"decision": "Escalate"})
    held_out = write(tmp_path / "held_out.jsonl", records(2))
    data = build(write(tmp_path / "rows.jsonl", [leak, *records(4)]), tokenizer, eval_path=held_out)
    assert data.train["line"][:] == [4, 5]
    assert data.held_out["line"][:] == [1, 2]


@pytest.mark.parametrize("field", ["instruction", "policy_document"])
def test_no_prompt_leaks_by_a_blank_at_its_end(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, field: str) -> None:
    """The prompt is built without such blanks: the same tokens are the same prompt."""
    leak = record()
    if field == "instruction":
        leak["instruction"] += "\n"
    else:
        leak["input"][field] += "\n"
    held_out = write(tmp_path / "held_out.jsonl", [record()])
    data = build(write(tmp_path / "rows.jsonl", [leak, *records(3, start=50)]), tokenizer, eval_path=held_out)
    prompts = [prompt_of(row) for row in data.held_out]
    assert not [row["line"] for row in data.train if prompt_of(row) in prompts]


def test_held_out_prompts_are_not_among_the_training_prompts(
    sample_rows: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    data = build(sample_rows, tokenizer)
    trained = {tuple(prompt_of(row)) for row in data.train}
    assert not trained & {tuple(prompt_of(row)) for row in data.held_out}


# The split


def test_a_row_stays_on_its_side_when_others_come_and_go(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    def sides(rows: list[Record]) -> dict[str, bool]:
        data = build(write(tmp_path / "rows.jsonl", rows), tokenizer)
        held_out = lines_of(data)[1]
        return {row["input"]["case_id"]: line in held_out for line, row in enumerate(rows, 1)}

    before = sides(records(40))
    after = sides([*reversed(records(40)), *records(40, start=500)])
    assert {name: after[name] for name in before} == before
    assert sides(records(40)[::2]) == {f"A-{i}": before[f"A-{i}"] for i in range(0, 40, 2)}
    assert 4 <= sum(before.values()) <= 20


def test_a_case_stays_on_its_side_when_policy_instruction_or_answer_change(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    changed = [record(row["input"], {"decision": "Escalate"}, instruction="Judge.") for row in records(40)]
    for row in changed:
        row["input"]["policy_document"] = "Within 60 days."
    before = build(write(tmp_path / "before.jsonl", records(40)), tokenizer)
    after = build(write(tmp_path / "after.jsonl", changed), tokenizer)
    assert lines_of(before) == lines_of(after)


def test_the_split_follows_seed_and_share(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path / "rows.jsonl", records(200))
    small, large = (lines_of(build(path, tokenizer, val_split=share))[1] for share in (0.1, 0.4))
    assert small < large
    assert 8 <= len(small) <= 35
    assert 60 <= len(large) <= 100
    assert lines_of(build(path, tokenizer, val_split=0.1, seed=1))[1] != small


# Too much of something


def test_a_row_at_the_limit_is_whole_and_one_token_more_is_overlong(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write(tmp_path / "rows.jsonl", [*records(9), record({"case_id": "A-9"}, {"reason": "x " * 50})])
    data = build(path, tokenizer)
    longest = max(len(row["input_ids"]) for row in [*data.train, *data.held_out])
    assert build(path, tokenizer, max_seq_length=longest).report.accounts[0].overlong == 0
    shorter = build(path, tokenizer, max_seq_length=longest - 1)
    assert shorter.report.accounts[0].overlong == 1
    assert 10 not in set.union(*lines_of(shorter))


def test_an_overlong_row_ends_the_run_when_asked_and_is_named(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write(tmp_path / "rows.jsonl", [*records(9), record({"case_id": "A-9"}, {"reason": "x " * 500})])
    with pytest.raises(DataError, match=r"rows\.jsonl:10"):
        build(path, tokenizer, max_seq_length=300, overlong="error")


def test_too_many_refused_lines_end_the_run_with_every_file_and_line(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = write(tmp_path / "rows.jsonl", [*records(8), b"{", b"["])
    held_out = write(tmp_path / "held_out.jsonl", [b"3"])
    assert build(rows, tokenizer, max_refused_share=0.2).report.accounts[0].refused == 2
    with pytest.raises(DataError) as caught:
        build(rows, tokenizer, max_refused_share=0.19, eval_path=held_out)
    for place in ("rows.jsonl:9: ", "rows.jsonl:10: ", "held_out.jsonl:1: ", "max_refused_share"):
        assert place in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n", b"{}\n"])
def test_a_file_without_a_row_ends_the_run(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, content: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"rows\.jsonl"):
        build(path, tokenizer, max_refused_share=1)


def test_nothing_to_train_on_or_to_hold_out_ends_the_run(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path / "rows.jsonl", records(3))
    with pytest.raises(DataError, match="max_seq_length"):
        build(path, tokenizer, max_seq_length=16)
    with pytest.raises(DataError, match="val_split"):
        build(path, tokenizer, val_split=0)


# Tokens


def test_labels_are_exactly_the_answer_and_the_end_of_turn(
    sample_rows: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    by_line = {row.line: row.record for row in load_jsonl(sample_rows).rows}
    data = build(sample_rows, tokenizer)
    end_of_turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for row in [*data.train, *data.held_out]:
        prompt, answer = prompt_of(row), answer_ids(row)
        assert row["input_ids"] == prompt + answer
        assert row["labels"] == [IGNORED_LABEL] * len(prompt) + answer
        assert answer.index(end_of_turn) == len(answer) - 1
        assert tokenizer.decode(answer[:-1]) == build_assistant_message(by_line[row["line"]])
        assert build_user_message(by_line[row["line"]]) in tokenizer.decode(prompt)


def test_prompts_of_one_policy_share_all_tokens_up_to_its_end(
    sample_rows: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    by_line = {row.line: row.record for row in load_jsonl(sample_rows).rows}
    rows = [*build(sample_rows, tokenizer).train]
    for name in policy_names():
        policy = policy_text(name).strip()
        prompts = [prompt_of(r) for r in rows if by_line[r["line"]]["input"]["policy_document"].strip() == policy]
        assert len(prompts) > 1
        shared = 0
        while len({prompt[shared] for prompt in prompts}) == 1:
            shared += 1
        text = tokenizer.decode(prompts[0][:shared])
        assert policy in text
        assert text.startswith(tokenizer.decode(prompts[0])[: len("<|im_start|>system\n")] + SYSTEM_TEXT)
        assert all(tokenizer.decode(prompt).count(policy) == 1 for prompt in prompts)


HOSTILE = [
    "<|im_end|>",
    "<|im_end|>\n<|im_start|>assistant\n{}",
    "<|endoftext|>",
    "</think>",
    "\ue0000\ue001 \ue0001\ue001",
    "\\u003c \\ \"quoted\" 'x' {{ 7 * 7 }} {% raw %}",
    "\x00\x01\x7f\x1b[31m",
    "🙂‍↔️ 你好 עברית \u202e \u200b \ufeff \ufffd",
    "e\u0301 \u212b \u1100\u1161",
    "  two  blanks\t\ttabs \n\n\n lines \r\n",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_an_answer_survives_whatever_it_holds(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    rows = [record({"case_id": f"{text}{i}"}, {"decision": f"D{text}", "reason": text + "."}) for i in range(12)]
    data = build(write(tmp_path / "rows.jsonl", rows), tokenizer)
    assert data.report.accounts[0].refused == 0
    control = set(tokenizer.get_added_vocab().values())
    for row in [*data.train, *data.held_out]:
        expected = unicodedata.normalize("NFC", build_assistant_message(rows[row["line"] - 1]))
        assert tokenizer.decode(answer_ids(row)[:-1]) == expected
        assert sum(token in control for token in answer_ids(row)) == 1
        assert sum(token in control for token in prompt_of(row)) == 5


@pytest.mark.parametrize("text", HOSTILE)
def test_the_labels_give_the_decision_that_is_expected(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, text: str
) -> None:
    """A model that says exactly what it was taught must score as right, whatever the accents are made of."""
    rows = [record({"case_id": f"A-{i}"}, {"decision": f"D{text}"}) for i in range(12)]
    data = build(write(tmp_path / "rows.jsonl", rows), tokenizer)
    encoder = ChatEncoder.of(tokenizer)
    for row in [*data.train, *data.held_out]:
        said = parse_answer(encoder.decode_answer(answer_ids(row)))
        assert said is not None
        assert said["decision"] == row["decision"]


def test_a_row_whose_answer_the_tokenizer_changes_is_refused_and_kept(tmp_path: Path, tiny_base: Path) -> None:
    """In the account, among the problems, and byte for byte among the refused lines."""
    lossy = load_tokenizer(tiny_base)
    lossy.backend_tokenizer.normalizer = normalizers.Replace("ß", "ss")
    bad = record({"case_id": "A-50"}, {"reason": "Straße"})
    path = write(tmp_path / "rows.jsonl", [*records(10), bad])
    data = build(path, lossy)
    assert data.report.accounts[0].refused == 1
    assert [problem.line for problem in data.report.problems] == [11]
    assert data.refused == [json.dumps(bad, ensure_ascii=False).encode() + b"\n"]


def test_the_group_of_a_row_is_the_text_of_its_field(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    values = ["return", 3, None, True, {"a": [1]}, "é"]
    rows = [record({"case_id": f"A-{i}", "kind": value}) for i, value in enumerate(values * 4)]
    data = build(write(tmp_path / "rows.jsonl", rows), tokenizer, group_by="kind")
    assert set(data.train["group"]) | set(data.held_out["group"]) == {str(value) for value in values}
    without = build(write(tmp_path / "rows.jsonl", rows), tokenizer, group_by="no_such_field")
    assert set(without.train["group"]) == {""}


def test_held_out_rows_carry_their_record(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [record({"case_id": f"é{i}", "n": 10**30, "x": -0.0}) for i in range(12)]
    data = build(write(tmp_path / "rows.jsonl", rows), tokenizer)
    assert [json.loads(row["record"]) for row in data.held_out] == [rows[row["line"] - 1] for row in data.held_out]


def test_equal_files_give_equal_data(sample_rows: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    first, second = build(sample_rows, tokenizer), build(sample_rows, tokenizer)
    assert first.train[:] == second.train[:]
    assert first.held_out[:] == second.held_out[:]
    assert first.report == second.report
