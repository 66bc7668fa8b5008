"""The task that lets base, champion and candidate answer the held-out rows."""

from dataclasses import replace
from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from tasks.artifact_store import open_folder, publish
from tasks.recovery import SCORING
from tasks.refs import DatasetRef, EvalReport, FolderRef, RegisteredRef, RunRef
from tasks.registry import fetch_champion
from training_core.config import Constrain, RunConfig, SettingsError
from training_core.dataset.store import TrainingData, load_training_data
from training_core.evaluation.comparison import (
    EvaluatedModel,
    compare_models,
    comparison_key,
    load_scores,
    save_comparison,
)
from training_core.evaluation.grammar import load_grammar
from training_core.folders import seal_digest
from training_core.model_setup import fetch_base_model, free_models, load_adapted_model
from training_core.training.adapter import load_leakage_keys
from training_core.training.gpu_check import gpu_problems
from training_core.training.out_of_memory import explain_out_of_memory


@task(task_run_name="evaluate {run.fingerprint:.6}", cache_policy=NO_CACHE, **SCORING)
def evaluate(config: RunConfig, run: RunRef, adapter: FolderRef, dataset: DatasetRef) -> EvalReport:
    """Score all models on the same rows, unless this comparison exists. Retried once: the champion is downloaded.

    The candidate is loaded from its folder, as every later process loads it, and no model is left in memory. Raises
    ``SettingsError`` when torch cannot use the GPU, or the answers do not fit in its memory.
    """
    data = load_training_data(open_folder(dataset.folder, config))
    champion = fetch_champion(config, but_not=run.fingerprint)
    rival = [champion.adapter.digest, str(champion.max_new_tokens), champion.constrain] if champion else []
    key = comparison_key(config, data, [adapter.digest, *rival])
    folder = Path(run.path) / f"evaluation-{key[:12]}"
    if seal_digest(folder):
        get_run_logger().info("Evaluation reused: rows, settings and evaluated models are those of %s", folder)
    else:
        with free_models():
            _compare(config, run, adapter, champion, data, folder)
    return _report(folder, champion)


def _compare(
    config: RunConfig,
    run: RunRef,
    adapter: FolderRef,
    champion: RegisteredRef | None,
    data: TrainingData,
    folder: Path,
) -> None:
    if problems := gpu_problems(gpu_expected=config.train_on is not None):
        raise SettingsError(problems)
    with explain_out_of_memory("a batch of answers", f"set eval_batch_size {max(1, config.eval_batch_size // 2)}"):
        base = fetch_base_model(config.model_name, config.cache_dir, config.model_revision)
        candidate = _load(base, adapter, run, config.constrain)
        other = _load_champion(champion) if champion else None
        comparison = compare_models(candidate, other, data, config)
    save_comparison(comparison, Path(run.path), folder)


def _report(folder: Path, champion: RegisteredRef | None) -> EvalReport:
    scores = load_scores(folder)
    return EvalReport(
        folder=publish(folder),
        rows=scores["candidate"].rows,
        accuracy={name: found.accuracy for name, found in scores.items()},
        false_approvals={name: found.false_approvals for name, found in scores.items()},
        champion=champion.version if champion else None,
    )


def _load(base: Path, adapter: FolderRef, run: RunRef, constrain: Constrain) -> EvaluatedModel:
    loaded = load_adapted_model(base, Path(adapter.path))
    grammar = load_grammar(Path(adapter.path), loaded.tokenizer, constrain)
    return EvaluatedModel(loaded, load_leakage_keys(Path(run.path)), grammar=grammar)


def _load_champion(champion: RegisteredRef) -> EvaluatedModel:
    found = _load(Path(champion.base), champion.adapter, champion.run, champion.constrain)
    return replace(found, max_new_tokens=champion.max_new_tokens)
