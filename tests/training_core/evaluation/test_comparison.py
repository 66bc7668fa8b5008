"""Nobody is scored on rows he was trained on, everybody answers the same rows, and what is left out is counted."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training_core.config import RunConfig, SettingsError
from training_core.data_loader import prepare_data
from training_core.dataset.encoding import leakage_keys
from training_core.dataset.splits import held_out_sample
from training_core.dataset.store import TrainingData, load_training_data
from training_core.evaluation.comparison import (
    Comparison,
    EvaluatedModel,
    compare_models,
    comparison_key,
    load_scores,
    save_comparison,
)
from training_core.evaluation.evidence import (
    POLICY,
    load_evidence,
    load_evidence_rows,
    load_left_out,
    load_predictions,
    tie_rows,
)
from training_core.evaluation.gate import STAYS_CANDIDATE, decide
from training_core.evaluation.scores import unseen_rows
from training_core.model_setup import LoadedModel, load_model_and_tokenizer

NOTHING = np.empty(0, np.uint64)


@pytest.fixture(scope="module")
def config(tiny_base: Path, sample_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    places = {"model_name": str(tiny_base), "dataset_path": str(sample_rows)}
    output = str(tmp_path_factory.mktemp("comparison"))
    return RunConfig(**places, output_dir=output, max_seq_length=4096, max_eval_rows=4, eval_max_new_tokens=2)


@pytest.fixture(scope="module")
def data(config: RunConfig) -> TrainingData:
    return load_training_data(prepare_data(config, Path(config.model_name)))


@pytest.fixture(scope="module")
def model(config: RunConfig) -> LoadedModel:
    return load_model_and_tokenizer(config)


def told_by(data: TrainingData, config: RunConfig, places: list[int]) -> np.ndarray:
    """What somebody was trained on who was trained on these held-out rows."""
    records = [json.loads(record) for record in data.held_out.select(places)["record"]]
    return np.unique(
        np.array([trace for record in records for trace in leakage_keys(record, config.entity_fields)], "uint64")
    )


def lines(comparison: Comparison) -> dict[str, list[int]]:
    return {name: [found.line for found in predictions] for name, predictions in comparison.predictions.items()}


@pytest.mark.parametrize("knows", ["champion", "candidate"])
def test_comparison_leaves_out_rows_seen_in_training(
    config: RunConfig, data: TrainingData, model: LoadedModel, knows: str, caplog: pytest.LogCaptureFixture
) -> None:
    known = told_by(data, config, [0, 2])
    of = {name: EvaluatedModel(model, known if name == knows else NOTHING) for name in ("champion", "candidate")}
    comparison = compare_models(of["candidate"], of["champion"], data, config)
    fresh = [line for place, line in enumerate(data.held_out["line"]) if place not in (0, 2)]
    answered = lines(comparison)
    assert list(answered) == ["base", "champion", "candidate", "majority", "lookup table"]
    assert all(len(found) == 4 and set(found) <= set(fresh) for found in answered.values())
    assert len(set(map(tuple, answered.values()))) == 1
    assert comparison.left_out == 2
    assert f"2 of {len(data.held_out)} held-out rows are left out" in caplog.text
    assert {json.loads(record)["input"]["case_id"] for record in comparison.parity_sample.records}.isdisjoint(
        json.loads(data.held_out[place]["record"])["input"]["case_id"] for place in (0, 2)
    )


def test_comparison_samples_from_unseen_rows(config: RunConfig, data: TrainingData) -> None:
    """As many are answered as there can be, whatever was left out."""
    unseen = unseen_rows(data.held_out, told_by(data, config, [1, 3, 4]), config)
    assert len(unseen) == len(data.held_out) - 3
    assert len(held_out_sample(unseen, config)) == config.max_eval_rows


def test_unseen_rows_leave_out_known_entities(config: RunConfig, data: TrainingData) -> None:
    named = replace(config, entity_fields=("issue_type",))
    kind = data.held_out[0]["group"]
    _, somebody = leakage_keys(json.loads(data.held_out[0]["record"]), named.entity_fields)
    unseen = unseen_rows(data.held_out, np.array([somebody], np.uint64), named)
    assert set(unseen["group"]) == set(data.held_out["group"]) - {kind}
    assert len(unseen_rows(data.held_out, np.array([somebody], np.uint64), config)) == len(data.held_out)


def test_with_overlap_allowed_every_row_is_scored(config: RunConfig, data: TrainingData, model: LoadedModel) -> None:
    everything = EvaluatedModel(model, told_by(data, config, list(range(len(data.held_out)))))
    comparison = compare_models(everything, everything, data, replace(config, overlap="allow"))
    assert (comparison.left_out, comparison.scores["candidate"].rows) == (0, 4)


def test_comparison_without_unseen_rows_is_rejected(config: RunConfig, data: TrainingData, model: LoadedModel) -> None:
    halves = [list(range(len(data.held_out)))[start::2] for start in (0, 1)]
    one, other = (EvaluatedModel(model, told_by(data, config, half)) for half in halves)
    with pytest.raises(SettingsError, match=r"eval_path: .* new to both, or split_seed and val_split"):
        compare_models(one, other, data, config)


def test_comparison_of_one_run_leaves_nothing_out(
    config: RunConfig, data: TrainingData, model: LoadedModel, tmp_path: Path
) -> None:
    """Rows are held out by case and entity. Nor is anything where an adapter does not say what it was trained on."""
    assert len(data.leakage_keys) >= len(data.train)
    comparison = compare_models(EvaluatedModel(model, data.leakage_keys), EvaluatedModel(model, NOTHING), data, config)
    assert comparison.left_out == 0
    save_comparison(comparison, tmp_path, tmp_path / "evaluation")
    assert load_left_out(tmp_path / "evaluation") == 0
    assert load_scores(tmp_path / "evaluation") == comparison.scores


def test_champion_answers_are_as_long_as_served(config: RunConfig, data: TrainingData, model: LoadedModel) -> None:
    candidate, champion = EvaluatedModel(model, NOTHING), EvaluatedModel(model, NOTHING, max_new_tokens=1)
    comparison = compare_models(candidate, champion, data, config)
    short, long = (max(len(one.answer) for one in comparison.predictions[name]) for name in ("champion", "candidate"))
    assert short < long


def test_comparison_folder_keeps_the_number_left_out(
    config: RunConfig, data: TrainingData, model: LoadedModel, tmp_path: Path
) -> None:
    comparison = compare_models(EvaluatedModel(model, told_by(data, config, [0])), None, data, config)
    save_comparison(comparison, tmp_path, tmp_path / "evaluation")
    assert load_left_out(tmp_path / "evaluation") == comparison.left_out == 1


def test_evidence_is_read_back_from_the_evaluation_folder(
    config: RunConfig, data: TrainingData, model: LoadedModel, tmp_path: Path
) -> None:
    """The gate decides from the folder alone: the rows, their policies and all models' answers are in it."""
    champion = EvaluatedModel(model, NOTHING)
    comparison = compare_models(EvaluatedModel(model, data.leakage_keys), champion, data, config)
    save_comparison(comparison, tmp_path, tmp_path / "evaluation")
    assert load_predictions(tmp_path / "evaluation") == comparison.predictions
    assert load_evidence_rows(tmp_path / "evaluation") == comparison.rows
    evidence = load_evidence(tmp_path / "evaluation")
    assert evidence.rows == 4 and set(evidence.models) == set(comparison.predictions)
    policies = json.loads((tmp_path / "evaluation" / "policies.json").read_text())
    records = [json.loads(record) for record in held_out_sample(data.held_out, config)["record"]]
    assert [policies[row.policy] for row in comparison.rows] == [r["input"]["policy_document"] for r in records]
    assert [row.record["input"]["case_id"] for row in comparison.rows] == [r["input"]["case_id"] for r in records]
    assert "policy_document" not in comparison.rows[0].record["input"]
    titles = [r["input"]["policy_document"].partition("\n")[0] for r in records]
    assert evidence.fields[POLICY].tolist() == titles
    verdict = decide(evidence, config)
    assert verdict.outcome == STAYS_CANDIDATE, "an adapter without effect"
    assert comparison.scores["lookup table"].text_score > comparison.scores["candidate"].text_score


@pytest.mark.parametrize("change", [{"overlap": "allow"}, {"entity_fields": ()}, {"answer_audit": "json:dumps"}])
def test_comparison_key_depends_on_the_rows_left_out(
    config: RunConfig, data: TrainingData, change: dict[str, object]
) -> None:
    assert comparison_key(replace(config, **change), data, ["a"]) != comparison_key(config, data, ["a"])


def test_comparison_key_depends_on_the_baselines_rows(config: RunConfig, data: TrainingData) -> None:
    fewer = replace(data, train=data.train.select(range(len(data.train) - 1)))
    assert comparison_key(config, fewer, ["a"]) != comparison_key(config, data, ["a"])


@pytest.mark.parametrize(
    ("keys", "ties"),
    [
        ([[1], [2], [3]], [0, 1, 2]),
        ([[1, 7], [2], [7, 3], [3]], [0, 1, 0, 0]),
        ([[2**63 + 1], [], [2**63 + 1]], [0, 1, 0]),
    ],
)
def test_rows_are_tied_through_any_shared_key(keys: list[list[int]], ties: list[int]) -> None:
    assert tie_rows(keys).tolist() == ties
