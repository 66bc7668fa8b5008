"""Answers held to a grammar are complete and equal the free ones where those are allowed; confidences are shares."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_model

from training_core.config import RunConfig, SettingsError
from training_core.dataset.answer_schema import Schema, any_object, schema_of_answers
from training_core.evaluation.constrained import ConstrainedAnswer, decision_value
from training_core.evaluation.generation import complete, generate, logit_gap
from training_core.evaluation.grammar import AnswerGrammar, load_grammar
from training_core.evaluation.text_scores import is_usable, parse_answer
from training_core.model_setup import LoadedModel, load_tokenizer
from training_core.prompts.chat_encoding import ChatEncoder
from training_core.rows.strict_json import Record
from training_core.utils import Precision

PADDED = 37  # rows of the embeddings that no token has
TEXTS: list[Record] = [{"decision": name, "reason": "r", "next_action": "n"} for name in ("Yes", "No", "Not yet")]
NESTED: list[Record] = [
    {"steps": ["a"], "refunds": [{"sum": 1.5, "to": "c"}], "decision": "Yes", "parcel": {"id": 1, "lost": True}},
    {"steps": [], "decision": "No", "parcel": None},
]
SCHEMAS: dict[str, tuple[Schema, list[Record]]] = {
    "texts": (schema_of_answers(TEXTS), TEXTS),
    "nested": (schema_of_answers(NESTED), NESTED),
    "json": (any_object(), []),
}


@pytest.fixture(scope="module")
def loaded(tiny_base: Path) -> LoadedModel:
    """A random model that says nothing with a form."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(tiny_base)
    model = tiny_model("qwen2", vocab_size=len(tokenizer) + PADDED, initializer_range=0.5)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    return LoadedModel(adapted.eval(), tokenizer, Precision("fp32", ""))


def settings(limit: int) -> RunConfig:
    return RunConfig(eval_max_new_tokens=limit, eval_batch_size=16)


def prompts(rows: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 500, rng.integers(1, 9)).tolist() for _ in range(rows)]


@pytest.mark.parametrize("name", SCHEMAS)
def test_constrained_answers_are_complete_within_the_limit(loaded: LoadedModel, name: str) -> None:
    limit = 240
    schema, examples = SCHEMAS[name]
    grammar = AnswerGrammar.of(schema, loaded.tokenizer)
    found = complete(loaded, prompts(8), settings(limit), grammar)
    texts = ChatEncoder.of(loaded.tokenizer).decode_answers([answer.tokens for answer in found])
    assert len(set(texts)) > 1
    for answer, text in zip(found, texts, strict=True):
        assert len(answer.tokens) <= limit and answer.tokens[-1] == grammar.end_of_turn
        assert isinstance(json.loads(text), dict)
        assert not examples or any(is_usable(parse_answer(text), example) for example in examples), text
        assert (answer.confidence is not None) == bool(examples)


def test_free_answers_of_the_same_model_have_no_form(loaded: LoadedModel) -> None:
    """Or the test above would show nothing."""
    encoder = ChatEncoder.of(loaded.tokenizer)
    assert not any(parse_answer(text) for text in encoder.decode_answers(generate(loaded, prompts(8), settings(30))))


class Scripted:
    """Scores of a model that wants to write one text, token by token, and is unsure where ``rivals`` say so."""

    def __init__(self, grammar: AnswerGrammar, tokens: list[int], rivals: dict[int, dict[int, float]]) -> None:
        self.grammar, self.tokens, self.rivals = grammar, tokens, rivals

    def answer(self, limit: int = 200) -> tuple[ConstrainedAnswer, list[int]]:
        answer, found = ConstrainedAnswer(self.grammar, limit), []
        while not answer.is_complete:
            scores = torch.full((3000,), -30.0)
            scores[self.tokens[len(found)]] = 0.0
            for token, probability in self.rivals.get(len(found), {}).items():
                scores[token] = float(np.log(probability / (1 - sum(self.rivals[len(found)].values()))))
            found.append(answer.choose(int(scores.argmax()), scores))
        return answer, found


def scripted(loaded: LoadedModel, text: str, rivals: dict[int, dict[int, float]] | None = None) -> Scripted:
    encoder = ChatEncoder.of(loaded.tokenizer)
    grammar = AnswerGrammar.of(SCHEMAS["texts"][0], loaded.tokenizer)
    return Scripted(grammar, encoder.encode_answer(text), rivals or {})


QUOTED = 'é {"decision": "No"}'
ANSWER = json.dumps({"decision": "Not yet", "reason": QUOTED, "next_action": "x"}, ensure_ascii=False)


def test_allowed_answer_is_left_as_it_is(loaded: LoadedModel) -> None:
    model = scripted(loaded, ANSWER)
    answer, found = model.answer()
    assert found == model.tokens
    assert not answer.changed
    assert answer.confidence == pytest.approx(1, abs=1e-6)


def test_confidence_is_the_share_of_the_decision_among_allowed_ones(loaded: LoadedModel) -> None:
    """A rival that the grammar does not allow has no share, another way to write the same decision is no rival."""
    tokenizer = loaded.tokenizer
    encoder = ChatEncoder.of(tokenizer)
    tokens = encoder.encode_answer(ANSWER)
    n, ot, yes, o, never = (tokenizer.convert_tokens_to_ids(piece) for piece in ("N", "ot", "Y", "o", "z"))
    place = tokens.index(n)
    assert tokens[place + 1] == ot
    answer, found = scripted(loaded, ANSWER, {place: {yes: 0.2, never: 0.3}, place + 1: {o: 0.1}}).answer()
    assert found == tokens
    assert answer.confidence == pytest.approx(0.5 / (0.5 + 0.2), abs=1e-4)


def test_forbidden_tokens_give_way_and_are_counted_as_changed(loaded: LoadedModel) -> None:
    answer, found = scripted(loaded, '{"verdict": "Yes"}' + " " * 80).answer(limit=60)
    assert answer.changed
    text = ChatEncoder.of(loaded.tokenizer).decode_answer(found)
    assert list(json.loads(text)) == ["decision", "reason", "next_action"]


def test_logit_gap_of_a_constrained_answer_is_zero(loaded: LoadedModel) -> None:
    grammar, asked = AnswerGrammar.of(SCHEMAS["texts"][0], loaded.tokenizer), prompts(3, 5)
    answers = [answer.tokens for answer in complete(loaded, asked, settings(70), grammar)]
    for prompt, tokens in zip(asked, answers, strict=True):
        assert logit_gap(loaded, prompt, tokens, grammar, 70) < 1e-3
        assert logit_gap(loaded, prompt, tokens) > 1
        other = [*tokens[:-9], tokens[-9] + 1, *tokens[-8:]]
        assert logit_gap(loaded, prompt, other, grammar, 70) > 1e-3


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"decision": "Yes", "re', '"Yes", "re'),
        ('{"reason": "the \\"decision\\": {", "decision": "N', '"N'),
        ('{"inner": {"decision": "No"}, "decision": "', '"'),
        ('{"inner": {"decision": "No"', None),
        ('{"reason": "decision", "next', None),
        ('{"decision": ', None),
        ("", None),
    ],
)
def test_decision_value_is_that_of_the_answers_own_key(text: str, value: str | None) -> None:
    assert decision_value(text.encode()) == (value.encode() if value else None)


def test_grammar_of_an_adapter_without_a_schema_names_the_fix(loaded: LoadedModel, tmp_path: Path) -> None:
    assert load_grammar(tmp_path, loaded.tokenizer, "none") is None
    grammar: Any = load_grammar(tmp_path, loaded.tokenizer, "json")
    assert grammar.decisions == ()
    with pytest.raises(SettingsError, match="give --constrain none or json"):
        load_grammar(tmp_path, loaded.tokenizer, "schema")
