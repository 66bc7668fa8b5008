"""Base, champion, candidate and two baselines answer the same held-out rows; the result is a folder."""

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from training_core.checkpoints import seal
from training_core.config import RunConfig
from training_core.data_store import TrainingData
from training_core.evaluation import (
    GroupScore,
    Prediction,
    Scores,
    evaluate_model,
    held_out_sample,
    predict_by_lookup,
    predict_by_majority,
    prompt_of,
    score,
)
from training_core.generation import generate
from training_core.journal import read_journal
from training_core.model_setup import LoadedModel
from training_core.report import draw_confusion, draw_curve
from training_core.trainer import SUMMARY_FILE

PROBE_ROWS = 4

_ANSWERING_CODE = (
    *("messages.py", "chat_encoding.py", "evaluation.py", "model_setup.py"),
    *("generation.py", "packing.py", "prefix_attention.py", "prefix_cache.py"),
)
_SETTINGS = ("max_eval_rows", "eval_batch_size", "eval_max_new_tokens", "group_by", "favourable_decisions", "seed")


@dataclass(frozen=True)
class Probe:
    """A few held-out rows and the exact tokens that came back, in one batch of answers up to so many tokens, and the
    precision they were computed in, with its reason: other machines round otherwise."""

    records: list[str]
    answers: list[list[int]]
    max_new_tokens: int
    precision: str


@dataclass(frozen=True)
class Contest:
    """Predictions and scores by contestant, in the order of the final table, and the candidate's probe."""

    predictions: dict[str, list[Prediction]]
    scores: dict[str, Scores]
    probe: Probe


def hold_contest(
    candidate: LoadedModel, champion: LoadedModel | None, data: TrainingData, config: RunConfig
) -> Contest:
    """Let every contestant answer the held-out rows. Without a champion there is none in the table."""
    rows = held_out_sample(data.held_out, config)
    with candidate.model.disable_adapter():
        predictions = {"base": evaluate_model(candidate, rows, config)}
    if champion:
        predictions["champion"] = evaluate_model(champion, rows, config)
    predictions["candidate"] = evaluate_model(candidate, rows, config)
    predictions["majority"] = predict_by_majority(data.train, rows)
    predictions["lookup table"] = predict_by_lookup(data.train, rows)
    first = rows.select(range(min(PROBE_ROWS, len(rows))))
    one_batch = replace(config, eval_batch_size=PROBE_ROWS)  # as the registered model answers so few rows
    answers = generate(candidate, [prompt_of(row) for row in first], one_batch)
    probe = Probe(first["record"][:], answers, config.eval_max_new_tokens, candidate.precision.reason)
    return Contest(predictions, {name: score(found, config) for name, found in predictions.items()}, probe)


def contest_key(config: RunConfig, data: TrainingData, adapter_digests: list[str]) -> str:
    """SHA-256 over what a contest's outcome depends on: contestants, held-out rows, settings of the evaluation, and
    the decisions that the baselines learn."""
    settings = {name: getattr(config, name) for name in _SETTINGS}
    code = [(Path(__file__).parent / name).read_text(encoding="utf-8") for name in _ANSWERING_CODE]
    records = hashlib.sha256("\n".join(data.held_out["record"][:]).encode()).hexdigest()
    learnt = sorted(Counter(zip(data.train["group"][:], data.train["decision"][:], strict=True)).items())
    return hashlib.sha256(json.dumps([adapter_digests, records, settings, code, learnt]).encode()).hexdigest()


def save_contest(contest: Contest, run_dir: Path, folder: Path) -> str:
    """Write scores, predictions, probe and pictures into a folder, and what the training took when ``run_dir`` is
    where it was done; returns the folder's digest. All of it, or no folder."""
    draft = folder.with_name(f"{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    _write(draft / "scores.json", {name: asdict(scores) for name, scores in contest.scores.items()})
    _write(draft / "probe.json", asdict(contest.probe))
    for name, predictions in contest.predictions.items():
        lines = "".join(json.dumps(asdict(found), ensure_ascii=False) + "\n" for found in predictions)
        (draft / f"predictions_{name.replace(' ', '_')}.jsonl").write_text(lines, encoding="utf-8")
    draw_confusion(contest.predictions["candidate"], draft / "confusion.png")
    if (run_dir / SUMMARY_FILE).is_file():
        draw_curve(read_journal(run_dir / "journal.jsonl"), draft / "loss_curve.png")
        shutil.copy(run_dir / SUMMARY_FILE, draft)
    digest = seal(draft)
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    return digest


def load_scores(folder: Path) -> dict[str, Scores]:
    """The scores in a folder that ``save_contest`` wrote, by contestant."""
    written = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    return {
        name: Scores(**values | {"by_group": {group: GroupScore(**g) for group, g in values["by_group"].items()}})
        for name, values in written.items()
    }


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
