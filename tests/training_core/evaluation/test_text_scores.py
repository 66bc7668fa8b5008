"""An answer is read strictly, is usable or not, and its texts are compared with the expected ones."""

import json
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from training_core.config import RunConfig
from training_core.evaluation.text_scores import (
    AnswerJudge,
    is_usable,
    parse_answer,
    read_training_answers,
    score_texts,
)
from training_core.model_setup import load_tokenizer
from training_core.prompts.chat_encoding import ChatEncoder
from training_core.user_functions import UserFunction

EXPECTED = {
    "decision": "Eligible",
    "reason": "Delivered 12 days ago; refunds close after 30 days.",
    "customer_response": "Your refund is approved; please use the free label we send.",
    "next_action": "Send label",
}
NONE_EXACT: frozenset[str] = frozenset()


def changed(**values: Any) -> dict[str, Any]:
    return {**EXPECTED, **values}


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in EXPECTED.items() if key != name}


# Reading answers


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "Eligible",
        "[]",
        '[{"decision": "Eligible"}]',
        '"Eligible"',
        "null",
        "3",
        '{"decision": "Eligible"',
        '{"decision": "Eligible"} ok',
        'Sure: {"decision": "Eligible"}',
        '```json\n{"decision": "Eligible"}\n```',
        '{"decision": "Eligible"}{"decision": "Escalate"}',
        '{"decision": "Eligible",}',
        "{'decision': 'Eligible'}",
        '{"decision": "Eligible", "decision": "Eligible"}',
        '{"a": {"b": 1, "b": 2}}',
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": "line\nbreak"}',
        '\ufeff{"a": 1}',
        '{"a": ' + "9" * 5000 + "}",
        '{"a": ' + "[" * 100_000,
        "{" * 100_000,
        '{"decision": "\\ud83d"}',
        '{"\\udc00": 1}',
    ],
    ids=lambda text: text[:24],
)
def test_anything_but_one_json_object_is_no_answer(text: str) -> None:
    assert parse_answer(text) is None


@pytest.mark.parametrize(
    "text", ['{"decision": "é 你好 \\ud83d\\ude00"}', " \n{} \t\r\n", '{"a": [{"b": null}], "c": 1e3}']
)
def test_one_json_object_is_an_answer(text: str) -> None:
    assert parse_answer(text) == json.loads(text)


# Usable answers

BAD_ANSWERS = {
    "a missing field": without("reason"),
    "a decision and nothing else": {"decision": "Eligible"},
    "an extra key": changed(card_number="4111 1111 1111 1111"),
    "an empty text": changed(reason=" "),
    "a number for a text": changed(next_action=3),
    "a list for a text": changed(next_action=["Send label"]),
    "null for a text": changed(reason=None),
    "a decision that is no text": changed(decision=True),
    "nothing": {},
}


@pytest.mark.parametrize("kind", BAD_ANSWERS)
def test_usable_answers_have_exactly_the_fields_of_the_row(kind: str) -> None:
    assert not is_usable(BAD_ANSWERS[kind], EXPECTED)
    judged = AnswerJudge().judge({"output": EXPECTED}, json.dumps(BAD_ANSWERS[kind]))
    assert (judged.parsed, judged.usable, judged.decision) == (True, False, None)
    assert set(judged.text_scores.values()) == {0.0}


def test_usable_answers_may_differ_in_their_values() -> None:
    assert is_usable(changed(decision="Escalate", reason="x"), EXPECTED)
    numbers = {"decision": "A", "amount": 3, "ids": [], "flag": False, "note": None}
    assert is_usable(numbers | {"amount": 3.5, "flag": True}, numbers)
    assert not is_usable(numbers | {"amount": True}, numbers)
    assert not is_usable(numbers | {"note": "x"}, numbers)


# Texts


def test_text_scores_are_chrf_for_free_texts() -> None:
    """The reference value is that of sacrebleu's own function."""
    from sacrebleu import sentence_chrf

    given = changed(reason="Delivered 14 days ago; refunds close after 30 days.")
    scores = score_texts(given, EXPECTED, NONE_EXACT)
    assert scores["reason"] == pytest.approx(sentence_chrf(given["reason"], [EXPECTED["reason"]]).score / 100)
    assert 0.5 < scores["reason"] < 1
    assert scores["customer_response"] == scores["next_action"] == 1
    assert "decision" not in scores


def test_text_scores_are_equality_for_fields_with_few_values() -> None:
    given = changed(next_action="Send labels", reason="x")
    assert score_texts(given, EXPECTED, frozenset({"next_action"}))["next_action"] == 0.0
    assert score_texts(given, EXPECTED, NONE_EXACT)["next_action"] > 0.5


@pytest.mark.parametrize("text", ["qwxz vvkj qqpl", "You people are idiots, do not write again."])
def test_text_scores_of_gibberish_and_insults_are_low(text: str) -> None:
    scores = score_texts(changed(reason=text, customer_response=text), EXPECTED, NONE_EXACT)
    assert scores["reason"] < 0.2 and scores["customer_response"] < 0.25


# What the training rows say

ROWS = [
    ("a", {"decision": "Yes", "reason": f"because of {i}", "next_action": ("stop", "go")[i % 2]}) for i in range(30)
]


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Any) -> PreTrainedTokenizerFast:
    return load_tokenizer(tiny_base)


def encoded(tokenizer: PreTrainedTokenizerFast, rows: list[tuple[str, dict[str, str]]]) -> Dataset:
    encoder = ChatEncoder.of(tokenizer)
    items = [
        {"group": group, "decision": answer["decision"], "labels": [-100, *encoder.encode_answer(json.dumps(answer))]}
        for group, answer in rows
    ]
    return Dataset.from_list(items)


def test_training_answers_tell_fields_with_few_values(tokenizer: PreTrainedTokenizerFast) -> None:
    answers = read_training_answers(encoded(tokenizer, ROWS), ChatEncoder.of(tokenizer))
    assert answers.exact_fields == {"decision", "next_action"}


def test_training_answers_give_the_texts_of_a_lookup_table(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [*ROWS, ("b", {"decision": "No", "reason": "never", "next_action": "stop"})]
    answers = read_training_answers(encoded(tokenizer, rows), ChatEncoder.of(tokenizer))
    assert answers.example("a", "Yes") == ROWS[0][1]
    assert answers.example("a", "No") == rows[-1][1], "of another group where this one has none"
    assert answers.example("a", "Perhaps") is None


# answer_audit


def audit(record: dict[str, Any], answer: dict[str, Any]) -> list[str]:
    return ["promises money"] if "money" in answer["customer_response"] and record["input"] else []


def test_answer_audit_gets_row_and_usable_answer() -> None:
    judge = AnswerJudge(audit=UserFunction("answer_audit", "rules:audit", audit))
    record = {"input": {"case_id": 1}, "output": EXPECTED}
    bad = changed(customer_response="Here is money.")
    assert judge.judge(record, json.dumps(bad)).problems == ["promises money"]
    assert judge.judge(record, json.dumps(EXPECTED)).problems == []
    assert judge.judge(record, "money").problems == []


def test_answer_audit_is_the_function_that_the_setting_names() -> None:
    judge = AnswerJudge.of(RunConfig(answer_audit="json:dumps"), NONE_EXACT)
    assert judge.audit == UserFunction("answer_audit", "json:dumps", json.dumps)
