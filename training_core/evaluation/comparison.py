"""Base, champion, candidate and two baselines answer the same held-out rows; the result is a folder."""

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

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
from training_core.evaluation.generation import complete, logit_gap
from training_core.evaluation.grammar import AnswerGrammar
from training_core.evaluation.reliability import RELIABILITY_FILE, draw_reliability
from training_core.evaluation.report import draw_confusion, draw_curve
from training_core.evaluation.scores import (
    GroupScore,
    Prediction,
    Scores,
    answer_rows,
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
from training_core.training.journal import read_journal, tokens_before_sharing

logger = logging.getLogger(__name__)

PARITY_ROWS = 4
FREE_FILE = "free_answers.json"

# Settings are in the key by their values, trainings by the digests of their adapters.
_COVERED = ["training_core.config", "training_core.trainer", "training_core.training"]
_SETTINGS = (
    *("max_eval_rows", "eval_batch_size", "eval_max_new_tokens", "constrain", "group_by", "favourable_decisions"),
    *("split_seed", "overlap", "entity_fields", "answer_audit"),
)


@dataclass(frozen=True)
class EvaluatedModel:
    """A model with its adapter, the digests of what that was trained on (see ``splits.training_leakage_keys``), the
    longest answer that it is served with, in tokens (``None``: as the settings say), and the grammar that its answers
    are held to (``None``: they are free)."""

    loaded: LoadedModel
    leakage_keys: np.ndarray
    max_new_tokens: int | None = None
    grammar: AnswerGrammar | None = None


@dataclass(frozen=True)
class ParitySample:
    """A few held-out rows and the exact tokens that came back, in one batch of answers up to so many tokens, the
    precision they were computed in, with its reason: other machines round otherwise; and the setting ``constrain``."""

    records: list[str]
    answers: list[list[int]]
    max_new_tokens: int
    precision: str
    constrain: str


@dataclass(frozen=True)
class FreeAnswers:
    """What the candidate answers without its grammar: its scores, and the number of rows that the grammar changed."""

    scores: Scores
    changed: int


@dataclass(frozen=True)
class Comparison:
    """Predictions and scores by model, in the order of the final table, the rows they are about with their policies by
    digest, and the candidate's parity sample; ``left_out`` is the number of held-out rows that candidate or champion
    was trained on, ``free`` what the candidate answers without its grammar, where it has one."""

    predictions: dict[str, list[Prediction]]
    scores: dict[str, Scores]
    rows: list[EvidenceRow]
    policies: dict[str, str]
    parity_sample: ParitySample
    left_out: int
    free: FreeAnswers | None = None


def compare_models(
    candidate: EvaluatedModel, champion: EvaluatedModel | None, data: TrainingData, config: RunConfig
) -> Comparison:
    """Let every model answer the held-out rows that none was trained on (with ``overlap="allow"``, all of them).

    Without a champion there is none in the table. Raises ``SettingsError`` when no such row is left.
    """
    evaluated = [candidate, champion] if champion else [candidate]
    unseen = unseen_by_all([model.leakage_keys for model in evaluated], data.held_out, config)
    rows = held_out_sample(unseen, config)
    predictions, free = _predict_all(candidate, champion, data.train, rows, config)
    scores = {name: score(found, config) for name, found in predictions.items()}
    parity_sample = _sample_parity(candidate, rows, config)
    return Comparison(
        predictions,
        scores,
        *evidence_rows(rows, config.entity_fields),
        parity_sample,
        left_out=len(data.held_out) - len(unseen),
        free=free,
    )


def _predict_all(
    candidate: EvaluatedModel, champion: EvaluatedModel | None, train: Dataset, rows: Dataset, config: RunConfig
) -> tuple[dict[str, list[Prediction]], FreeAnswers | None]:
    answers = read_training_answers(train, ChatEncoder.of(candidate.loaded.tokenizer))
    judge = AnswerJudge.of(config, answers.exact_fields)
    with candidate.loaded.model.disable_adapter():
        predictions = {"base": evaluate_model(candidate.loaded, rows, config, judge, candidate.grammar)}
    if champion:
        as_served = replace(config, eval_max_new_tokens=champion.max_new_tokens or config.eval_max_new_tokens)
        predictions["champion"] = evaluate_model(champion.loaded, rows, as_served, judge, champion.grammar)
    predictions["candidate"], changed = answer_rows(candidate.loaded, rows, config, judge, candidate.grammar)
    free = (
        _free_answers(candidate, predictions["candidate"], changed, rows, config, judge) if candidate.grammar else None
    )
    baselines = {"majority": predict_by_majority(train, rows), "lookup table": predict_by_lookup(train, rows)}
    examples = {name: with_example_texts(found, rows, answers, judge) for name, found in baselines.items()}
    return predictions | examples, free


def _free_answers(
    candidate: EvaluatedModel,
    predictions: list[Prediction],
    changed: list[int],
    rows: Dataset,
    config: RunConfig,
    judge: AnswerJudge,
) -> FreeAnswers:
    """Only the changed rows are answered again: an answer in which the grammar changed nothing is the free one."""
    again = evaluate_model(candidate.loaded, rows.select(changed), config, judge) if changed else []
    free = dict(enumerate(predictions)) | dict(zip(changed, again, strict=True))
    return FreeAnswers(score([free[row] for row in range(len(predictions))], config), len(changed))


def _sample_parity(candidate: EvaluatedModel, rows: Dataset, config: RunConfig) -> ParitySample:
    model, grammar, limit = candidate.loaded, candidate.grammar, config.eval_max_new_tokens
    first = rows.select(range(min(PARITY_ROWS, len(rows))))
    one_batch = replace(config, eval_batch_size=PARITY_ROWS)  # as the registered model answers so few rows
    prompts = [prompt_of(row) for row in first]
    answers = [found.tokens for found in complete(model, prompts, one_batch, grammar)]
    asked = zip(prompts, answers, strict=True)
    if not all(math.isfinite(logit_gap(model, *pair, grammar, limit)) for pair in asked):
        raise SettingsError(["training: the adapter computes logits that are not finite numbers; lower learning_rate"])
    constrain = config.constrain if grammar else "none"
    return ParitySample(first["record"][:], answers, limit, model.precision.reason, constrain)


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
        if comparison.free:
            _write(draft / FREE_FILE, asdict(comparison.free))
        _write(draft / "parity_sample.json", asdict(comparison.parity_sample))
        for name, predictions in comparison.predictions.items():
            lines = "".join(json.dumps(asdict(found), ensure_ascii=False) + "\n" for found in predictions)
            (draft / predictions_file(name)).write_text(lines, encoding="utf-8")
        write_evidence_rows(draft, comparison.rows, comparison.policies)
        draw_confusion(comparison.predictions["candidate"], draft / "confusion.png")
        draw_reliability(comparison.predictions["candidate"], draft / RELIABILITY_FILE)
        if (run_dir / SUMMARY_FILE).is_file():
            points = read_journal(run_dir / "journal.jsonl")
            draw_curve(points, draft / "loss_curve.png")
            summary = json.loads((run_dir / SUMMARY_FILE).read_text(encoding="utf-8"))
            _write(draft / SUMMARY_FILE, summary | {"tokens_before_sharing": tokens_before_sharing(points)})


def load_scores(folder: Path) -> dict[str, Scores]:
    """The scores in a folder that ``save_comparison`` wrote, by evaluated model."""
    written = json.loads((folder / SCORES_FILE).read_text(encoding="utf-8"))
    return {name: _as_scores(values) for name, values in written.items()}


def load_free_answers(folder: Path) -> FreeAnswers | None:
    """What the candidate answers without its grammar; ``None`` where it has none, or in an earlier version's folder."""
    if not (folder / FREE_FILE).is_file():
        return None
    written = json.loads((folder / FREE_FILE).read_text(encoding="utf-8"))
    return FreeAnswers(_as_scores(written["scores"]), written["changed"])


def _as_scores(values: dict[str, Any]) -> Scores:
    return Scores(**values | {"by_group": {group: GroupScore(**g) for group, g in values["by_group"].items()}})


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
