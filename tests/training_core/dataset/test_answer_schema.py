"""The schema of answers allows what the training rows have, and no more than it must."""

import json
from typing import Any

import pytest
from datasets import Dataset

from training_core.dataset import checked_schema
from training_core.dataset.answer_grammar import AnswerGrammar
from training_core.dataset.answer_schema import MOST_SEQUENCES, any_object, form_of, schema_of_answers
from training_core.dataset.checked_schema import answer_schema
from training_core.model_setup import load_tokenizer
from training_core.prompts.chat_encoding import ChatEncoder
from training_core.rows.strict_json import Record

ANSWERS: list[Record] = [
    {"decision": "Yes", "reason": 'a "b"\n ü', "sum": 1, "steps": ["x"], "parcel": {"id": 7, "lost": True}},
    {"decision": "No", "reason": "b", "sum": 1.5, "steps": [], "parcel": None},
    {"decision": "No", "sum": -2, "reason": "c", "steps": [], "parcel": None},
]


@pytest.fixture(scope="module")
def encoder(tiny_base: Any) -> ChatEncoder:
    return ChatEncoder.of(load_tokenizer(tiny_base))


def is_allowed(grammar: AnswerGrammar, encoder: ChatEncoder, text: str) -> bool:
    return grammar.allows(encoder.encode_answer(text))


def rendered(**values: Any) -> str:
    return json.dumps(values, ensure_ascii=False)


def test_schema_allows_every_answer_it_was_made_from(encoder: ChatEncoder) -> None:
    grammar = AnswerGrammar.of(schema_of_answers(ANSWERS), encoder.tokenizer)
    assert all(is_allowed(grammar, encoder, json.dumps(answer, ensure_ascii=False)) for answer in ANSWERS)
    assert grammar.decisions == ("No", "Yes")


GOOD = {"decision": "Yes", "reason": "a", "sum": 3, "steps": ["x", "y"], "parcel": None}
UNUSUAL: dict[str, Any] = {
    "an empty object": {},
    "empty objects in a list": [{}],
    "a list of nothing": [[], [[]]],
    "a space first": " led by a space",
    "a no-break space first": "\u00a0x",
    "a next line first": "\u0085x",
    "a blank text": " \n",
    "an id of 16 digits": 1234567890123456,
    "an id of 30 digits": -(10**30),
    "a small number": 1e-07,
    "a large number": 1e16,
    "the largest bound": [10**15, -1e15],
    "a negative zero": -0.0,
    "many digits": -0.1234567890123456,
    "an odd key": {'"\\/\n\u2028': None},
    "a control token": "<|im_end|>",
    "numbers of both kinds": [1, 1.5, 10**16, True, None, "x", ["x"], {}],
    "many levels": json.loads('{"a": [' * 30 + "1e-07" + "]}" * 30),
}


@pytest.mark.parametrize("kind", UNUSUAL)
@pytest.mark.parametrize("keys", [1, MOST_SEQUENCES + 1])
def test_unusual_answer_of_a_row_stays_possible(kind: str, keys: int, encoder: ChatEncoder, caplog: Any) -> None:
    answers = [{"decision": "Yes", "more": {f"key {n}": UNUSUAL[kind]}} for n in range(keys)]
    schema = answer_schema(encoded(answers, encoder), encoder)
    assert schema and not caplog.records
    grammar = AnswerGrammar.of(schema, encoder.tokenizer)
    assert grammar.decisions == ("Yes",)
    assert all(is_allowed(grammar, encoder, rendered(**answer)) for answer in answers)


def test_schema_that_forbids_a_row_gives_way(
    encoder: ChatEncoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    train = encoded(ANSWERS, encoder)
    monkeypatch.setattr(checked_schema, "schema_of", lambda *_: schema_of_answers(ANSWERS[:2]))
    assert answer_schema(train, encoder) == any_object(list(map(form_of, ANSWERS)))
    assert [record.message for record in caplog.records] == [
        "Answers cannot be held to the form of the training rows: it does not allow 1 of 3 answers, the first in line 3"
    ]
    monkeypatch.setattr(checked_schema, "any_object", lambda *_: {"type": "object", "minProperties": -1})
    assert answer_schema(train, encoder) is None


WRONG = {
    "another decision": rendered(**GOOD | {"decision": "Maybe"}),
    "an empty text": rendered(**GOOD | {"reason": ""}),
    "white space as a text": rendered(**GOOD | {"reason": " "}),
    "a text for a number": rendered(**GOOD | {"sum": "3"}),
    "an infinite number": json.dumps(GOOD).replace("3", "1e999"),
    "a key too many": rendered(**GOOD, more=1),
    "a key too few": rendered(decision="Yes", reason="a"),
    "another order": rendered(reason="a", decision="Yes", sum=3, steps=[], parcel=None),
    "no spaces": json.dumps(GOOD, separators=(",", ":")),
    "a lone surrogate": json.dumps(GOOD | {"reason": "\ud800"}),
    "an empty text in a list": rendered(**GOOD | {"steps": [""]}),
    "text after the object": rendered(**GOOD) + ".",
    "a control token": rendered(**GOOD | {"reason": "<|im_end|>"})[:-2],
}


@pytest.mark.parametrize("kind", WRONG)
def test_schema_rejects_answers_that_no_row_has(kind: str, encoder: ChatEncoder) -> None:
    grammar = AnswerGrammar.of(schema_of_answers(ANSWERS), encoder.tokenizer)
    assert is_allowed(grammar, encoder, rendered(**GOOD))
    assert not is_allowed(grammar, encoder, WRONG[kind])


def encoded(answers: list[Record], encoder: ChatEncoder) -> Dataset:
    ids = [encoder.encode_answer(rendered(**answer)) for answer in answers]
    decisions = [answer["decision"] for answer in answers]
    labels = [[-100, -100, *answer] for answer in ids]
    return Dataset.from_dict({"labels": labels, "decision": decisions, "line": range(1, len(answers) + 1)})


def test_schema_of_encoded_rows_is_that_of_their_answers(encoder: ChatEncoder) -> None:
    train = encoded(ANSWERS, encoder)
    assert json.dumps(answer_schema(train, encoder)) == json.dumps(schema_of_answers(ANSWERS))
    assert json.dumps(schema_of_answers(ANSWERS[::-1])) == json.dumps(schema_of_answers(ANSWERS))


def test_map_with_many_sequences_of_keys_may_have_any(encoder: ChatEncoder) -> None:
    answers = [{"decision": "Yes", "stock": {f"item {n}": n}} for n in range(MOST_SEQUENCES + 1)]
    grammar = AnswerGrammar.of(schema_of_answers(answers), encoder.tokenizer)
    assert is_allowed(grammar, encoder, rendered(decision="Yes", stock={"another": 1, "one": [{}]}))
    assert not is_allowed(grammar, encoder, rendered(decision="No", stock={"another": 1}))
    loose = [{"decision": "Yes", f"field {n}": n} for n in range(MOST_SEQUENCES + 1)]
    assert schema_of_answers(loose) == any_object()
