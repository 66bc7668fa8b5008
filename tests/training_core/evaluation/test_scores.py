"""Scores are over all rows, answers are greedy, and JSON is read strictly."""

import copy
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from training_core.config import RunConfig
from training_core.dataset.encoding import IGNORED_LABEL
from training_core.dataset.splits import held_out_sample
from training_core.evaluation.generation import generate
from training_core.evaluation.scores import (
    NO_DECISION,
    Prediction,
    evaluate_model,
    predict_by_lookup,
    predict_by_majority,
    prompt_of,
    score,
)
from training_core.evaluation.text_scores import AnswerJudge
from training_core.model_setup import LoadedModel, load_model_and_tokenizer
from training_core.prompts.chat_encoding import ChatEncoder

CONFIG = RunConfig(eval_max_new_tokens=12)


def predictions(*pairs: tuple[str, str | None], group: str = "return") -> list[Prediction]:
    """Expected and given decisions; None is an answer that could not be read."""
    return [
        Prediction(
            "rows.jsonl", i, group, expected, given or NO_DECISION, given is not None, given is not None, answer=""
        )
        for i, (expected, given) in enumerate(pairs)
    ]


def rows(*pairs: tuple[str, str]) -> Dataset:
    """Group and decision of each row."""
    return Dataset.from_list(
        [
            {"file": "a", "line": i, "group": g, "decision": d, "input_ids": [1], "labels": [1]}
            for i, (g, d) in enumerate(pairs)
        ]
    )


# Scores


def test_score_counts_an_unreadable_answer_as_wrong() -> None:
    scores = score(
        predictions(("Eligible", "Eligible"), ("Eligible", None), ("Escalate", None), ("Escalate", "x")), CONFIG
    )
    assert (scores.rows, scores.accuracy, scores.parsed, scores.usable) == (4, 0.25, 0.5, 0.5)
    assert scores.by_group["return"].rows == 4
    assert scores.by_group["return"].accuracy == 0.25


@pytest.mark.parametrize(
    ("right", "rows", "low", "high"),
    [
        (8, 10, 0.4901625, 0.9433178),
        (0, 10, 0.0, 0.2775328),
        (10, 10, 0.7224672, 1.0),
        (1, 1, 0.2065493, 1.0),
        (640, 1000, 0.6097662, 0.6691623),
    ],
)
def test_score_interval_is_wilsons(right: int, rows: int, low: float, high: float) -> None:
    pairs = [("Eligible", "Eligible")] * right + [("Eligible", "Escalate")] * (rows - right)
    scores = score(predictions(*pairs), CONFIG)
    assert scores.accuracy == right / rows
    assert (scores.accuracy_low, scores.accuracy_high) == pytest.approx((low, high), abs=1e-6)


def test_macro_f1_is_the_mean_over_the_expected_decisions() -> None:
    """A: precision 1/2, recall 1/2; B: precision 1, recall 1/2; C: never given. The stray X is no class of its own."""
    pairs = [("A", "A"), ("A", "X"), ("B", "B"), ("B", "A"), ("C", None)]
    assert score(predictions(*pairs), CONFIG).macro_f1 == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)


def test_false_approvals_and_refusals_are_shares_of_all_rows() -> None:
    pairs = [
        ("Not Eligible", "Eligible"),
        ("Escalate", "Partly"),
        ("Eligible", "Partly"),
        ("Eligible", "Not Eligible"),
        ("Not Eligible", "Escalate"),
        ("Eligible", "Eligible"),
        ("Not Eligible", None),
    ]
    scores = score(predictions(*pairs), CONFIG)
    assert (scores.false_approvals, scores.false_refusals) == (1 / 7, 2 / 7)
    both = RunConfig(favourable_decisions=("Eligible", "Partly"))
    scores = score(predictions(*pairs), both)
    assert (scores.false_approvals, scores.false_refusals) == (2 / 7, 1 / 7)


def test_capitals_and_edges_hide_no_false_approval() -> None:
    """Rows with "Eligible" and "eligible " would otherwise disarm the guard."""
    scores = score(predictions(("Not Eligible", "eligible "), ("ELIGIBLE", "Eligible")), CONFIG)
    assert (scores.false_approvals, scores.false_refusals, scores.accuracy) == (1 / 2, 0, 0)


def test_scores_are_told_apart_by_group() -> None:
    found = [
        *predictions(("A", "A"), ("A", "B"), group="b"),
        *predictions(("A", "A"), group="a"),
        *predictions(("A", "B"), group=""),
    ]
    scores = score(found, CONFIG)
    assert {name: (group.rows, group.accuracy) for name, group in scores.by_group.items()} == {
        "": (1, 0.0),
        "a": (1, 1.0),
        "b": (2, 0.5),
    }
    assert sum(group.rows for group in scores.by_group.values()) == scores.rows


def test_nothing_to_score_is_an_error_and_no_score() -> None:
    with pytest.raises(ValueError, match="at least one prediction"):
        score([], CONFIG)


def test_scores_are_all_numbers() -> None:
    scores = score(predictions(("A", None)), CONFIG)
    values = (scores.accuracy, scores.accuracy_low, scores.accuracy_high, scores.macro_f1, scores.usable)
    assert not any(math.isnan(value) for value in values)
    assert scores.accuracy == scores.macro_f1 == scores.usable == 0


# Baselines


def test_majority_baseline_gives_the_commonest_training_decision() -> None:
    train = rows(("a", "No"), ("b", "Yes"), ("b", "Yes"), ("a", "No"), ("c", "Yes"))
    held_out = rows(("a", "No"), ("new", "Yes"), ("c", "No"))
    found = predict_by_majority(train, held_out)
    assert [p.decision for p in found] == ["Yes"] * 3
    assert [(p.line, p.group, p.expected) for p in found] == [(0, "a", "No"), (1, "new", "Yes"), (2, "c", "No")]
    assert score(found, CONFIG).accuracy == 1 / 3


def test_lookup_baseline_gives_the_groups_commonest_decision() -> None:
    """And the commonest of all for a group that training did not have."""
    train = rows(("a", "No"), ("a", "No"), ("a", "Yes"), ("b", "Yes"), ("b", "Yes"), ("c", "Maybe"), ("b", "Yes"))
    held_out = rows(("a", "Yes"), ("b", "Yes"), ("c", "Maybe"), ("new", "Yes"))
    assert [p.decision for p in predict_by_lookup(train, held_out)] == ["No", "Yes", "Maybe", "Yes"]


def test_baselines_learn_from_training_rows_alone() -> None:
    train, held_out = rows(("a", "Yes")), rows(("a", "No"), ("a", "No"))
    for predict in (predict_by_majority, predict_by_lookup):
        assert score(predict(train, held_out), CONFIG).accuracy == 0


# The rows that are answered


def test_held_out_sample_is_all_rows_when_few() -> None:
    held_out = rows(*[("a", "x")] * 7)
    assert held_out_sample(held_out, RunConfig(max_eval_rows=7))["line"][:] == list(range(7))


def test_held_out_sample_depends_on_split_seed() -> None:
    held_out = rows(*[("a", "x")] * 50)
    drawn = held_out_sample(held_out, RunConfig(max_eval_rows=10))["line"][:]
    assert len(set(drawn)) == 10
    assert drawn == sorted(drawn) != list(range(10))
    assert held_out_sample(held_out, RunConfig(max_eval_rows=10))["line"][:] == drawn
    assert held_out_sample(held_out, RunConfig(max_eval_rows=10, split_seed=1))["line"][:] != drawn


# A model's answers


def with_adapter(base: Path) -> LoadedModel:
    """The tiny base with an adapter so strong that every token depends on all before it."""
    loaded = load_model_and_tokenizer(RunConfig(model_name=str(base), gradient_checkpointing=False))
    torch.manual_seed(1)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return loaded


@pytest.fixture(scope="module")
def loaded(tiny_base: Path) -> LoadedModel:
    return with_adapter(tiny_base)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(10, 900, (length,), generator=generator).tolist() for length in (40, 3, 17, 90, 1, 18, 60)]


def settings(**values: Any) -> RunConfig:
    return RunConfig(eval_max_new_tokens=12, **values)


def test_answers_are_the_likeliest_token_each_time(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    prompt = prompts[2]
    (answer,) = generate(loaded, [prompt], settings())
    for i, token in enumerate(answer):
        with torch.inference_mode():
            logits = loaded.model(input_ids=torch.tensor([prompt + answer[:i]], device=loaded.model.device)).logits
        assert token == logits[0, -1].argmax()


@pytest.mark.parametrize("batch_size", [2, 3, 16])
def test_evaluation_in_batches_equals_one_by_one(
    loaded: LoadedModel, prompts: list[list[int]], batch_size: int
) -> None:
    one_by_one = [generate(loaded, [prompt], settings(eval_batch_size=1))[0] for prompt in prompts]
    assert len({tuple(answer) for answer in one_by_one}) == len(prompts)
    assert generate(loaded, prompts, settings(eval_batch_size=batch_size)) == one_by_one


def test_evaluation_limits_the_length_of_answers(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    end_of_turn = ChatEncoder.of(loaded.tokenizer).end_of_turn
    for answer in generate(loaded, prompts, settings()):
        assert len(answer) <= 12
        assert end_of_turn not in answer[:-1]
        assert len(answer) == 12 or answer[-1] == end_of_turn


def test_evaluation_of_no_rows_gives_no_answers(loaded: LoadedModel) -> None:
    assert generate(loaded, [], settings()) == []


def test_advice_for_sampling_in_a_base_changes_no_answer(
    loaded: LoadedModel, prompts: list[list[int]], tiny_base: Path, tmp_path: Path
) -> None:
    """Qwen2.5 comes with a repetition penalty that would bend greedy answers unasked."""
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    advice = {"do_sample": True, "repetition_penalty": 5.0, "temperature": 0.1, "top_k": 3, "no_repeat_ngram_size": 1}
    more = {"max_new_tokens": 2, "min_new_tokens": 9, "bad_words_ids": [[i] for i in range(10, 500)], "num_beams": 3}
    (base / "generation_config.json").write_text(json.dumps(advice | more))
    assert generate(with_adapter(base), prompts, settings()) == generate(loaded, prompts, settings())


def held_out(tokenizer: PreTrainedTokenizerFast) -> Dataset:
    """Three rows in the tokens of a tokenizer."""
    encoder = ChatEncoder.of(tokenizer)
    output = {"decision": "Eligible", "reason": "r"}
    items = []
    for i, text in enumerate(["Hello.", "A longer case than the others.", "x"]):
        record = {"messages": [{"role": "user", "content": text}], "output": output}
        prompt, answer = encoder.encode_prompt(record["messages"]), encoder.encode_answer(json.dumps(output))
        labels = [IGNORED_LABEL] * len(prompt) + answer
        row = {"input_ids": prompt + answer, "labels": labels, "record": json.dumps(record)}
        items.append(row | {"file": "b.jsonl", "line": 7 + i, "decision": "Eligible", "group": text})
    return Dataset.from_list(items)


def test_predictions_are_in_the_order_of_rows(loaded: LoadedModel) -> None:
    """An untrained model answers nonsense, and each of its answers counts."""
    data, encoder = held_out(loaded.tokenizer), ChatEncoder.of(loaded.tokenizer)
    assert [prompt_of(row) for row in data] == [row["input_ids"][: row["labels"].count(IGNORED_LABEL)] for row in data]
    found = evaluate_model(loaded, data, settings(eval_batch_size=2), AnswerJudge())
    answers = generate(loaded, [prompt_of(row) for row in data], settings())
    assert [(p.file, p.line, p.group) for p in found] == [("b.jsonl", row["line"], row["group"]) for row in data]
    assert {p.expected for p in found} == {"Eligible"}
    assert [p.answer for p in found] == [encoder.decode_answer(answer) for answer in answers]
    assert {p.decision for p in found} == {NO_DECISION}
    assert score(found, CONFIG).rows == 3


def test_evaluation_uses_the_tokenizer_of_the_model(loaded: LoadedModel) -> None:
    """A champion may stand on an older base than the candidate."""
    other = copy.deepcopy(loaded.tokenizer)
    other.chat_template = f"<|im_start|>{other.chat_template}"
    rows = held_out(other)
    assert rows["input_ids"][0] != held_out(loaded.tokenizer)["input_ids"][0]
    own = held_out(loaded.tokenizer)
    assert evaluate_model(loaded, rows, settings(), AnswerJudge()) == evaluate_model(
        loaded, own, settings(), AnswerJudge()
    )
