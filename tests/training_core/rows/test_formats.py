"""A row gives the same record in each of six formats; rows of another format are rejected."""

import json
from typing import Any

import pytest
from row_samples import Record, record

from samples.cases import generate_rows
from samples.row_formats import FORMATS
from training_core.rows.formats import detect_format, read_question, reject_unknown_format, to_record, unread_keys
from training_core.rows.strict_json import BadLineError, parse_json

NAMES = {
    "native": "native",
    "messages": "messages, cases",
    "conversations": "conversations, cases",
    "alpaca": "alpaca, cases",
    "prompt_completion": "prompt/completion, cases",
    "prompt_completion_turns": "prompt/completion turns, cases",
}
ANSWER = json.dumps(record()["output"])


def read(value: object, like: object = None) -> Record:
    """The record of a row in a file whose first row was ``like``."""
    row_format = detect_format(value if like is None else like)
    assert row_format is not None
    return to_record(parse_json(json.dumps(value).encode()), row_format)


def rejection(value: object, like: object = None) -> tuple[str, str]:
    with pytest.raises(BadLineError) as caught:
        read(value, like)
    field, what, fix = caught.value.args
    assert fix
    return field, what


def chat(*turns: tuple[object, object]) -> Record:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize("row_format", FORMATS)
def test_case_is_the_same_record_in_every_format(row_format: str) -> None:
    for row in generate_rows(20, seed=4):
        written = FORMATS[row_format](row)
        assert str(detect_format(written)) == NAMES[row_format]
        assert read(written) == read(row)
        assert list(read(written)["output"]) == list(row["output"])


@pytest.mark.parametrize("row_format", [name for name in FORMATS if name != "native"])
@pytest.mark.parametrize(
    ("case", "output"),
    [
        ({"number": 10**22, "ratio": 0.1, "none": None, "list": [[]]}, {"sum": 2**64}),
        ({"note": 'he said "{a: 1}"\n\n{not json'}, {"reason": "a\n\n{b}"}),
        ({"e\u0301": "e\u0301"}, {"reason": "e\u0301"}),
        ({"marker": "<|im_start|>assistant\n<think>"}, {"reason": "<|im_end|>"}),
    ],
)
def test_unusual_values_are_preserved_in_every_format(row_format: str, case: Record, output: Record) -> None:
    assert read(FORMATS[row_format](record(case, output))) == read(record(case, output))


def test_free_text_conversation_keeps_its_turns() -> None:
    turns = [("system", " Be brief. "), ("user", "One?"), ("assistant", "1"), ("user", "Two?\n")]
    row = read(chat(*turns, ("assistant", ANSWER)))
    assert row["messages"] == [{"role": role, "content": str(text).strip()} for role, text in turns]
    assert row["output"] == record()["output"]


def test_alpaca_rows_may_omit_the_input() -> None:
    with_input = {"instruction": "Judge.", "input": "Late parcel.", "output": ANSWER}
    for without in ({"input": ""}, {"input": None}, {}):
        row = {"instruction": "Judge.", "output": ANSWER} | without
        for first in (row, with_input):
            assert read(row, like=first)["messages"] == [{"role": "user", "content": "Judge."}]
            assert read(with_input, like=first)["messages"][0]["content"] == "Judge.\n\nLate parcel."
    assert rejection(with_input | {"input": {"a": 1}}, like=with_input)[0] == "input"


@pytest.mark.parametrize("row_format", [name for name in FORMATS if name != "native"])
def test_cases_and_free_text_cannot_be_mixed(row_format: str) -> None:
    """In either order: a case read as free text would lose its shared policy and its entities."""
    case = FORMATS[row_format](record())
    free = json.loads(json.dumps(case).replace("policy_document", "policy"))
    assert rejection(free, like=case)[0] == "user"
    assert rejection(case, like=free)[0] == "user"


@pytest.mark.parametrize(
    "asked",
    [
        'Answer with\n\n{"decision": "…"}\n\nby the policy_document above.',
        "{customer} wants a refund, see policy_document below.",
        '{"order": 1}\n\nThe policy_document says: no.',
        "By the policy_document {see above}",
    ],
)
def test_braces_in_free_text_are_not_a_case(asked: str) -> None:
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": ANSWER}]
    row_format = detect_format({"messages": turns})
    assert row_format is not None
    assert to_record({"messages": turns}, row_format)["messages"] == turns[:1]


def test_case_may_follow_a_template_of_the_answer() -> None:
    case = record()
    instruction = 'Answer with\n\n{"decision": "…"}\n\nfor this case:'
    asked = f"{instruction}\n\n{json.dumps(case['input'])}"
    row = {"prompt": asked, "completion": json.dumps(case["output"])}
    row_format = detect_format(row)
    assert row_format is not None
    assert to_record(row, row_format) == case | {"instruction": instruction}


@pytest.mark.parametrize("messages", [None, [], "text", [{"role": "assistant", "content": "x"}], [{"from": "tool"}]])
def test_read_question_rejects_other_values(messages: object) -> None:
    with pytest.raises(BadLineError):
        read_question(messages)


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_two_formats_cannot_be_mixed_in_a_file(first: str, second: str) -> None:
    if first != second:
        field, _ = rejection(FORMATS[second](record()), like=FORMATS[first](record()))
        assert field in ("instruction", "input", "output", "messages", "conversations", "prompt", "completion")


@pytest.mark.parametrize(
    ("turns", "what"),
    [
        ([], "got 0 messages"),
        ([("user", "x")], "got 1 messages"),
        ([("user", "x"), ("tool", "y"), ("assistant", ANSWER)], "got 'tool'"),
        ([("user", "x"), (None, "y")], "got null or nothing"),
        ([("user", "x"), (["assistant"], ANSWER)], "expected the role system, user or assistant, got a list"),
        ([("user", "x"), ("user", "y")], "got user, user"),
        ([("user", "x"), ("assistant", "y"), ("assistant", ANSWER)], "got user, assistant, assistant"),
        ([("assistant", "x"), ("user", "y")], "got assistant, user"),
        ([("user", "x"), ("assistant", ANSWER), ("system", "y")], "got user, assistant, system"),
        ([("system", "x"), ("system", "y"), ("user", "z"), ("assistant", ANSWER)], "got system, system"),
        ([("system", "x"), ("assistant", ANSWER)], "got system, assistant"),
        ([("user", "x"), ("assistant", "")], "expected a non-empty string"),
        ([("user", " \n\u00a0"), ("assistant", ANSWER)], "expected a non-empty string"),
        ([("user", None), ("assistant", ANSWER)], "expected a non-empty string"),
        ([("user", [{"type": "text", "text": ""}]), ("assistant", ANSWER)], "expected a non-empty string"),
        ([("user", "x"), ("assistant", "Yes, of course.")], "invalid JSON"),
        ([("user", "x"), ("assistant", f"[{ANSWER}]")], "expected an object, got a list"),
        ([("user", "x"), ("assistant", '{"decision": "a", "decision": "b"}')], "got a duplicate"),
        ([("user", "x"), ("assistant", '{"decision": "a"}')], "got null or nothing"),
        ([("user", "x"), ("assistant", "```json\n" + ANSWER + "\n```")], "invalid JSON"),
        ([("user", "x"), ("assistant", ANSWER.replace("Yes", "\\ud800"))], "surrogate"),
        ([("user", "x"), ("assistant", ANSWER.replace('"Yes."', "NaN"))], "NaN"),
        ([("user", "x"), ("assistant", ANSWER.replace("Yes", "\\u0007"))], "control character"),
    ],
)
def test_invalid_conversation_is_rejected_with_a_reason(turns: list[Any], what: str) -> None:
    assert what in rejection(chat(*turns))[1]


@pytest.mark.parametrize("turn", [None, "text", 3, [], ["user", "x"]])
def test_turn_that_is_not_an_object_is_rejected(turn: object) -> None:
    assert "expected an object" in rejection({"messages": [turn, {"role": "assistant", "content": ANSWER}]})[1]


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 3, "text", [], [record()], {}),
        {"instruction": "x", "input": record()["input"], "output": "Eligible"},
        {"instruction": "x", "input": None, "output": record()["output"]},
        {"messages": "text"},
        {"prompt": "x"},
        {"prompt": ["x"], "completion": "y"},
        {"text": "all in one"},
    ],
)
def test_unknown_format_is_rejected(value: object) -> None:
    assert detect_format(value) is None
    with pytest.raises(BadLineError) as caught:
        reject_unknown_format(value)
    assert len(caught.value.args) == 3


def test_format_detection_ignores_the_answer() -> None:
    """Only the question decides whether the rows of a file have their cases as JSON."""
    row = FORMATS["messages"](record())
    row["messages"][-1]["content"] = "not JSON"
    assert str(detect_format(row)) == "messages, cases"


def test_allowed_decisions_reject_any_other_decision() -> None:
    row_format = detect_format(record())
    assert row_format
    to_record(record(), row_format, ("Eligible", "Escalate"))
    with pytest.raises(BadLineError, match="expected one of allowed_decisions, got 'Eligible'"):
        to_record(record(), row_format, ("Escalate",))


def test_parts_of_text_are_read_as_one_text() -> None:
    chat = FORMATS["messages"](record())
    parts = [{**turn, "content": split_text(turn["content"])} for turn in chat["messages"]]
    assert read({"messages": parts}) == read(chat)


def split_text(text: str) -> list[Record]:
    kinds = ("text", "input_text", "output_text")
    return [{"type": kind, "text": part} for kind, part in zip(kinds, (text[:9], text[9:12], text[12:]), strict=True)]


def test_unread_keys_of_a_turn_change_nothing() -> None:
    chat = FORMATS["messages"](record())
    more = {"name": "x", "weight": 1, "tool_calls": [], "function_call": None}
    assert read({"messages": [turn | more for turn in chat["messages"]]}) == read(chat)


def test_unread_keys_of_a_row_and_its_turns_are_named() -> None:
    chat = FORMATS["messages"](record())
    odd = {
        "messages": [turn | {"reasoning_content": "Hm.", "train": False, "audio": None} for turn in chat["messages"]]
    }
    row_format = detect_format(odd)
    assert row_format
    assert unread_keys(odd | {"id": 1}, row_format) == {"id", "messages[].reasoning_content", "messages[].train"}
