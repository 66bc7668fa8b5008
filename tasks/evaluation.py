"""The task that lets base, champion and candidate answer the held-out rows."""

from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from tasks.artifact_store import open_folder, publish
from tasks.recovery import SCORING
from tasks.refs import DatasetRef, EvalReport, FolderRef, RegisteredRef, RunRef
from tasks.registry import fetch_champion
from training_core.config import RunConfig
from training_core.dataset.store import load_training_data
from training_core.evaluation.comparison import (
    EvaluatedModel,
    compare_models,
    comparison_key,
    load_scores,
    save_comparison,
)
from training_core.folders import seal_digest
from training_core.model_setup import LoadedModel, load_adapted_model
from training_core.training.adapter import load_leakage_keys


@task(task_run_name="evaluate {run.fingerprint:.6}", cache_policy=NO_CACHE, **SCORING)
def evaluate(
    loaded: LoadedModel, config: RunConfig, run: RunRef, adapter: FolderRef, dataset: DatasetRef
) -> EvalReport:
    """Score all models on the same rows, unless this comparison exists. Retried once: the champion is downloaded."""
    data = load_training_data(open_folder(dataset.folder, config))
    champion = fetch_champion(config, but_not=run.fingerprint)
    rival = [champion.adapter.digest, str(champion.max_new_tokens)] if champion else []
    key = comparison_key(config, data, [adapter.digest, *rival])
    folder = Path(run.path) / f"evaluation-{key[:12]}"
    if seal_digest(folder):
        get_run_logger().info("Evaluation reused: rows, settings and evaluated models are those of %s", folder)
    else:
        candidate = EvaluatedModel(loaded, load_leakage_keys(Path(run.path)))
        comparison = compare_models(candidate, _load(champion) if champion else None, data, config)
        save_comparison(comparison, Path(run.path), folder)
    return _report(folder, champion)


def _report(folder: Path, champion: RegisteredRef | None) -> EvalReport:
    scores = load_scores(folder)
    return EvalReport(
        folder=publish(folder),
        rows=scores["candidate"].rows,
        accuracy={name: found.accuracy for name, found in scores.items()},
        false_approvals={name: found.false_approvals for name, found in scores.items()},
        champion=champion.version if champion else None,
    )


def _load(champion: RegisteredRef) -> EvaluatedModel:
    loaded = load_adapted_model(Path(champion.base), Path(champion.adapter.path))
    return EvaluatedModel(loaded, load_leakage_keys(Path(champion.run.path)), champion.max_new_tokens)
