"""Base, champion, candidate and two baselines answer the same held-out rows; the result is a folder."""

import hashlib
import json
import logging
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from datasets import Dataset

from training_core.code_digest import code_digest, function_digest
from training_core.config import RunConfig, SettingsError
from training_core.dataset.splits import held_out_sample
from training_core.dataset.store import TrainingData
from training_core.evaluation.evidence import (
    SCORES_FILE,
    EvidenceRow,
    evidence_rows,
    predictions_file,
    write_evidence_rows,
)
from training_core.evaluation.evidence import load_predictions as load_predictions
from training_core.evaluation.generation import generate, logit_gap
from training_core.evaluation.report import draw_confusion, draw_curve
from training_core.evaluation.scores import (
    GroupScore,
    Prediction,
    Scores,
    evaluate_model,
    predict_by_lookup,
    predict_by_majority,
    prompt_of,
    score,
    unseen_rows,
    with_example_texts,
)
from training_core.evaluation.text_scores import AnswerJudge, read_training_answers
from training_core.folders import complete_folder
from training_core.model_setup import LoadedModel
from training_core.prompts.chat_encoding import ChatEncoder
from training_core.trainer import SUMMARY_FILE
from training_core.training.journal import read_journal

logger = logging.getLogger(__name__)

PARITY_ROWS = 4

# Settings are in the key by their values, trainings by the digests of their adapters.
_COVERED = ["training_core.config", "training_core.trainer", "training_core.training"]
_SETTINGS = (
    *("max_eval_rows", "eval_batch_size", "eval_max_new_tokens", "group_by", "favourable_decisions", "split_seed"),
    *("overlap", "entity_fields", "answer_audit"),
)


@dataclass(frozen=True)
class EvaluatedModel:
    """A model with its adapter, and the digests of what that was trained on (see ``splits.training_leakage_keys``)."""

    loaded: LoadedModel
    leakage_keys: np.ndarray


@dataclass(frozen=True)
class ParitySample:
    """A few held-out rows and the exact tokens that came back, in one batch of answers up to so many tokens, and the
    precision they were computed in, with its reason: other machines round otherwise."""

    records: list[str]
    answers: list[list[int]]
    max_new_tokens: int
    precision: str


@dataclass(frozen=True)
class Comparison:
    """Predictions and scores by model, in the order of the final table, the rows they are about with their policies by
    digest, and the candidate's parity sample; ``left_out`` is the number of held-out rows that candidate or champion
    was trained on."""

    predictions: dict[str, list[Prediction]]
    scores: dict[str, Scores]
    rows: list[EvidenceRow]
    policies: dict[str, str]
    parity_sample: ParitySample
    left_out: int


def compare_models(
    candidate: EvaluatedModel, champion: EvaluatedModel | None, data: TrainingData, config: RunConfig
) -> Comparison:
    """Let every model answer the held-out rows that none was trained on (with ``overlap="allow"``, all of them).

    Without a champion there is none in the table. Raises ``SettingsError`` when no such row is left.
    """
    evaluated = [candidate, champion] if champion else [candidate]
    unseen = unseen_by_all([model.leakage_keys for model in evaluated], data.held_out, config)
    rows = held_out_sample(unseen, config)
    predictions = _predict_all(candidate.loaded, champion.loaded if champion else None, data.train, rows, config)
    scores = {name: score(found, config) for name, found in predictions.items()}
    parity_sample = _sample_parity(candidate.loaded, rows, config)
    return Comparison(
        predictions,
        scores,
        *evidence_rows(rows, config.entity_fields),
        parity_sample,
        left_out=len(data.held_out) - len(unseen),
    )


def _predict_all(
    model: LoadedModel, champion: LoadedModel | None, train: Dataset, rows: Dataset, config: RunConfig
) -> dict[str, list[Prediction]]:
    answers = read_training_answers(train, ChatEncoder.of(model.tokenizer))
    judge = AnswerJudge.of(config, answers.exact_fields)
    with model.model.disable_adapter():
        predictions = {"base": evaluate_model(model, rows, config, judge)}
    if champion:
        predictions["champion"] = evaluate_model(champion, rows, config, judge)
    predictions["candidate"] = evaluate_model(model, rows, config, judge)
    baselines = {"majority": predict_by_majority(train, rows), "lookup table": predict_by_lookup(train, rows)}
    return predictions | {name: with_example_texts(found, rows, answers, judge) for name, found in baselines.items()}


def _sample_parity(model: LoadedModel, rows: Dataset, config: RunConfig) -> ParitySample:
    first = rows.select(range(min(PARITY_ROWS, len(rows))))
    one_batch = replace(config, eval_batch_size=PARITY_ROWS)  # as the registered model answers so few rows
    prompts = [prompt_of(row) for row in first]
    answers = generate(model, prompts, one_batch)
    if not all(math.isfinite(logit_gap(model, *asked)) for asked in zip(prompts, answers, strict=True)):
        raise SettingsError(["training: the adapter computes logits that are not finite numbers; lower learning_rate"])
    return ParitySample(first["record"][:], answers, config.eval_max_new_tokens, model.precision.reason)


def unseen_by_all(leakage_keys: Sequence[np.ndarray], rows: Dataset, config: RunConfig) -> Dataset:
    """The held-out rows that no evaluated model was trained on; raises ``SettingsError`` when there is none."""
    unseen = unseen_rows(rows, np.concatenate(leakage_keys), config)
    if not len(unseen):
        what = f"candidate or champion was trained on the case or an entity of all {len(rows)} held-out rows"
        fix = "give rows that are new to both, or split_seed and val_split of the champion's run"
        raise SettingsError([f"eval_path: {what}; {fix}"])
    if len(unseen) < len(rows):
        left_out = len(rows) - len(unseen)
        logger.warning("%d of %d held-out rows are left out: candidate or champion knows them", left_out, len(rows))
    return unseen


def comparison_key(config: RunConfig, data: TrainingData, adapter_digests: list[str]) -> str:
    """SHA-256 over what a comparison's outcome depends on: models, held-out rows, settings of the evaluation, and the
    decisions that the baselines learn."""
    settings = {name: getattr(config, name) for name in _SETTINGS}
    code = code_digest("training_core.evaluation.comparison", _COVERED)
    records = hashlib.sha256("\n".join(data.held_out["record"][:]).encode()).hexdigest()
    learnt = sorted(Counter(zip(data.train["group"][:], data.train["decision"][:], strict=True)).items())
    parts = [adapter_digests, records, settings, code, learnt, function_digest(config.answer_audit)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def save_comparison(comparison: Comparison, run_dir: Path, folder: Path) -> None:
    """Write scores, predictions, parity sample and pictures into a folder, and the training's summary when ``run_dir``
    holds one. All of it, or no folder."""
    with complete_folder(folder) as draft:
        _write(draft / SCORES_FILE, {name: asdict(scores) for name, scores in comparison.scores.items()})
        _write(draft / "comparison.json", {"left_out": comparison.left_out})
        _write(draft / "parity_sample.json", asdict(comparison.parity_sample))
        for name, predictions in comparison.predictions.items():
            lines = "".join(json.dumps(asdict(found), ensure_ascii=False) + "\n" for found in predictions)
            (draft / predictions_file(name)).write_text(lines, encoding="utf-8")
        write_evidence_rows(draft, comparison.rows, comparison.policies)
        draw_confusion(comparison.predictions["candidate"], draft / "confusion.png")
        if (run_dir / SUMMARY_FILE).is_file():
            draw_curve(read_journal(run_dir / "journal.jsonl"), draft / "loss_curve.png")
            shutil.copy(run_dir / SUMMARY_FILE, draft)


def load_scores(folder: Path) -> dict[str, Scores]:
    """The scores in a folder that ``save_comparison`` wrote, by evaluated model."""
    written = json.loads((folder / SCORES_FILE).read_text(encoding="utf-8"))
    return {
        name: Scores(**values | {"by_group": {group: GroupScore(**g) for group, g in values["by_group"].items()}})
        for name, values in written.items()
    }


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
