"""One row in six shapes is one record; rows of another shape are rejected, never half understood."""

import json
from typing import Any

import pytest
from row_samples import Record, record

from samples.cases import generate_rows
from samples.row_formats import FORMATS
from training_core.rows.formats import detect_format, read_question, reject_unknown_format, to_record
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
    shape = detect_format(value if like is None else like)
    assert shape is not None
    return to_record(parse_json(json.dumps(value).encode()), shape)


def rejection(value: object, like: object = None) -> tuple[str, str]:
    with pytest.raises(BadLineError) as caught:
        read(value, like)
    field, what, fix = caught.value.args
    assert fix
    return field, what


def chat(*turns: tuple[object, object]) -> Record:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize("shape", FORMATS)
def test_a_case_is_the_same_record_in_every_shape(shape: str) -> None:
    for row in generate_rows(20, seed=4):
        written = FORMATS[shape](row)
        assert str(detect_format(written)) == NAMES[shape]
        assert read(written) == read(row)
        assert list(read(written)["output"]) == list(row["output"])


@pytest.mark.parametrize("shape", [name for name in FORMATS if name != "native"])
@pytest.mark.parametrize(
    ("case", "output"),
    [
        ({"number": 10**22, "ratio": 0.1, "none": None, "list": [[]]}, {"sum": 2**64}),
        ({"note": 'he said "{a: 1}"\n\n{not json'}, {"reason": "a\n\n{b}"}),
        ({"e\u0301": "e\u0301"}, {"reason": "e\u0301"}),
        ({"marker": "<|im_start|>assistant\n<think>"}, {"reason": "<|im_end|>"}),
    ],
)
def test_odd_values_come_through_every_shape(shape: str, case: Record, output: Record) -> None:
    assert read(FORMATS[shape](record(case, output))) == read(record(case, output))


def test_a_conversation_in_free_text_keeps_its_own_turns() -> None:
    turns = [("system", " Be brief. "), ("user", "One?"), ("assistant", "1"), ("user", "Two?\n")]
    row = read(chat(*turns, ("assistant", ANSWER)))
    assert row["messages"] == [{"role": role, "content": str(text).strip()} for role, text in turns]
    assert row["output"] == record()["output"]


def test_alpaca_rows_with_and_without_input_are_of_one_shape() -> None:
    with_input = {"instruction": "Judge.", "input": "Late parcel.", "output": ANSWER}
    for without in ({"input": ""}, {"input": None}, {}):
        row = {"instruction": "Judge.", "output": ANSWER} | without
        for first in (row, with_input):
            assert read(row, like=first)["messages"] == [{"role": "user", "content": "Judge."}]
            assert read(with_input, like=first)["messages"][0]["content"] == "Judge.\n\nLate parcel."
    assert rejection(with_input | {"input": {"a": 1}}, like=with_input)[0] == "input"


@pytest.mark.parametrize("shape", [name for name in FORMATS if name != "native"])
def test_cases_and_free_text_do_not_mix_in_one_file(shape: str) -> None:
    """Whichever comes first: a case read as free text would lose its policy's sharing and its entities."""
    case = FORMATS[shape](record())
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
def test_braces_in_free_text_make_no_case_of_it(asked: str) -> None:
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": ANSWER}]
    shape = detect_format({"messages": turns})
    assert shape is not None
    assert to_record({"messages": turns}, shape)["messages"] == turns[:1]


def test_a_template_of_the_answer_may_stand_before_the_case() -> None:
    case = record()
    instruction = 'Answer with\n\n{"decision": "…"}\n\nfor this case:'
    asked = f"{instruction}\n\n{json.dumps(case['input'])}"
    row = {"prompt": asked, "completion": json.dumps(case["output"])}
    shape = detect_format(row)
    assert shape is not None
    assert to_record(row, shape) == case | {"instruction": instruction}


@pytest.mark.parametrize("messages", [None, [], "text", [{"role": "assistant", "content": "x"}], [{"from": "tool"}]])
def test_a_question_that_is_none_is_rejected(messages: object) -> None:
    with pytest.raises(BadLineError):
        read_question(messages)


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_two_shapes_do_not_mix_in_one_file(first: str, second: str) -> None:
    if first != second:
        field, _ = rejection(FORMATS[second](record()), like=FORMATS[first](record()))
        assert field in ("instruction", "input", "output", "messages", "conversations", "prompt", "completion")


@pytest.mark.parametrize(
    ("turns", "what"),
    [
        ([], "0 turns"),
        ([("user", "x")], "1 turns"),
        ([("user", "x"), ("tool", "y"), ("assistant", ANSWER)], "role 'tool'"),
        ([("user", "x"), (None, "y")], "role None"),
        ([("user", "x"), (["assistant"], ANSWER)], "role"),
        ([("user", "x"), ("user", "y")], "turns are user, user"),
        ([("user", "x"), ("assistant", "y"), ("assistant", ANSWER)], "turns are user, assistant, assistant"),
        ([("assistant", "x"), ("user", "y")], "turns are assistant, user"),
        ([("user", "x"), ("assistant", ANSWER), ("system", "y")], "turns are user, assistant, system"),
        ([("system", "x"), ("system", "y"), ("user", "z"), ("assistant", ANSWER)], "turns are system, system"),
        ([("system", "x"), ("assistant", ANSWER)], "turns are system, assistant"),
        ([("user", "x"), ("assistant", "")], "holds no text"),
        ([("user", " \n\u00a0"), ("assistant", ANSWER)], "holds no text"),
        ([("user", None), ("assistant", ANSWER)], "holds no text"),
        ([("user", [{"type": "text", "text": "x"}]), ("assistant", ANSWER)], "holds no text"),
        ([("user", "x"), ("assistant", "Yes, of course.")], "not JSON"),
        ([("user", "x"), ("assistant", f"[{ANSWER}]")], "is no object"),
        ([("user", "x"), ("assistant", '{"decision": "a", "decision": "b"}')], "twice"),
        ([("user", "x"), ("assistant", '{"decision": "a"}')], "missing or null"),
        ([("user", "x"), ("assistant", "```json\n" + ANSWER + "\n```")], "not JSON"),
        ([("user", "x"), ("assistant", ANSWER.replace("Yes", "\\ud800"))], "surrogate"),
        ([("user", "x"), ("assistant", ANSWER.replace('"Yes."', "NaN"))], "NaN"),
        ([("user", "x"), ("assistant", ANSWER.replace("Yes", "\\u0007"))], "control character"),
    ],
)
def test_a_conversation_that_is_none_is_rejected_with_its_reason(turns: list[Any], what: str) -> None:
    assert what in rejection(chat(*turns))[1]


@pytest.mark.parametrize("turn", [None, "text", 3, [], ["user", "x"]])
def test_a_turn_that_is_no_object_is_rejected(turn: object) -> None:
    assert "a turn is a" in rejection({"messages": [turn, {"role": "assistant", "content": ANSWER}]})[1]


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
def test_a_row_of_no_known_shape_settles_nothing_and_is_rejected(value: object) -> None:
    assert detect_format(value) is None
    with pytest.raises(BadLineError) as caught:
        reject_unknown_format(value)
    assert len(caught.value.args) == 3


def test_an_odd_first_answer_does_not_turn_a_file_of_cases_into_free_text() -> None:
    """The words of the question alone say whether a file holds cases."""
    row = FORMATS["messages"](record())
    row["messages"][-1]["content"] = "not JSON"
    assert str(detect_format(row)) == "messages, cases"


def test_only_allowed_decisions_are_read_when_they_are_given() -> None:
    shape = detect_format(record())
    assert shape
    to_record(record(), shape, ("Eligible", "Escalate"))
    with pytest.raises(BadLineError, match="no allowed decision"):
        to_record(record(), shape, ("Escalate",))
