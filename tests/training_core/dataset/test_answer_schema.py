"""The schema of answers allows what the training rows have, and no more than it must."""

import json
from typing import Any

import pytest
from datasets import Dataset
from llguidance import LLMatcher

from training_core.dataset.answer_schema import MOST_SEQUENCES, answer_schema, any_object, schema_of_answers
from training_core.evaluation.grammar import AnswerGrammar
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
    tokens = encoder.encode_answer(text)
    matcher: LLMatcher = grammar.start()
    return matcher.validate_tokens(tokens) == len(tokens)


def rendered(**values: Any) -> str:
    return json.dumps(values, ensure_ascii=False)


def test_schema_allows_every_answer_it_was_made_from(encoder: ChatEncoder) -> None:
    grammar = AnswerGrammar.of(schema_of_answers(ANSWERS), encoder.tokenizer)
    assert all(is_allowed(grammar, encoder, json.dumps(answer, ensure_ascii=False)) for answer in ANSWERS)
    assert grammar.decisions == ("No", "Yes")


GOOD = {"decision": "Yes", "reason": "a", "sum": 3, "steps": ["x", "y"], "parcel": None}
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


def test_schema_of_encoded_rows_is_that_of_their_answers(encoder: ChatEncoder) -> None:
    ids = [encoder.encode_answer(json.dumps(answer, ensure_ascii=False)) for answer in ANSWERS]
    labels = [[-100, -100, *answer] for answer in ids]
    train = Dataset.from_dict({"labels": labels, "decision": [answer["decision"] for answer in ANSWERS]})
    assert json.dumps(answer_schema(train, encoder)) == json.dumps(schema_of_answers(ANSWERS))
    assert json.dumps(schema_of_answers(ANSWERS[::-1])) == json.dumps(schema_of_answers(ANSWERS))


def test_map_with_many_sequences_of_keys_may_have_any(encoder: ChatEncoder) -> None:
    answers = [{"decision": "Yes", "stock": {f"item {n}": n}} for n in range(MOST_SEQUENCES + 1)]
    grammar = AnswerGrammar.of(schema_of_answers(answers), encoder.tokenizer)
    assert is_allowed(grammar, encoder, rendered(decision="Yes", stock={"another": 1, "one": [{}]}))
    assert not is_allowed(grammar, encoder, rendered(decision="No", stock={"another": 1}))
    loose = [{"decision": "Yes", f"field {n}": n} for n in range(MOST_SEQUENCES + 1)]
    assert schema_of_answers(loose) == any_object()
