"""The schema of the training rows' answers, checked: the answer of every row is possible under it."""

import json
import logging
from collections.abc import Iterator

from datasets import Dataset

from training_core.dataset.answer_grammar import AnswerGrammar
from training_core.dataset.answer_schema import DECISION, Schema, any_object, form_of, schema_of
from training_core.dataset.encoding import IGNORED_LABEL
from training_core.prompts.chat_encoding import ChatEncoder, TokenIds

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 1_000


def answer_schema(train: Dataset, encoder: ChatEncoder) -> Schema | None:
    """The schema of the answers of encoded training rows, each of which it allows.

    It is the form of the rows; where that cannot be followed or forbids a row's answer, it is any JSON object, after a
    warning. ``None``, after another one: not even that allows every answer.
    """
    forms = {form_of(json.loads(text)) for ids in _answers(train) for text in encoder.decode_answers(ids)}
    decisions = sorted(set(train[DECISION][:]))
    schemas = {"the form of the training rows": schema_of(forms, decisions), "any JSON object": any_object(forms)}
    for name, schema in schemas.items():
        problem = _problem(schema, train, encoder)
        if problem is None:
            return schema
        logger.warning("Answers cannot be held to %s: %s", name, problem)
    return None


def _answers(train: Dataset) -> Iterator[list[TokenIds]]:
    """The answers' tokens, batch by batch."""
    for batch in train.select_columns(["labels"]).with_format("numpy").iter(_ROWS_AT_ONCE):
        yield [labels[labels != IGNORED_LABEL] for labels in batch["labels"]]


def _problem(schema: Schema, train: Dataset, encoder: ChatEncoder) -> str | None:
    """Why answers cannot be held to a schema."""
    try:
        grammar = AnswerGrammar.of(schema, encoder.tokenizer)
    except ValueError as error:
        return str(error)
    allowed = [grammar.allows(answer.tolist()) for answers in _answers(train) for answer in answers]
    if all(allowed):
        return None
    first = train[allowed.index(False)]["line"]
    return f"it does not allow {allowed.count(False):,} of {len(allowed):,} answers, the first in line {first}"
