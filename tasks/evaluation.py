"""The task that lets base, champion and candidate answer the held-out rows."""

from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from tasks.attempts import may_pass
from tasks.refs import DatasetRef, EvalReport, FolderRef, RegisteredRef, RunRef
from tasks.registry import fetch_champion
from tasks.store import open_folder, publish
from training_core.config import RunConfig
from training_core.dataset.store import load_training_data
from training_core.evaluation.comparison import Contestant, contest_key, hold_contest, load_scores, save_contest
from training_core.folders import seal_digest
from training_core.model_setup import LoadedModel, load_adapted_model
from training_core.training.checkpoints import load_trained_on


@task(cache_policy=NO_CACHE, retries=1, retry_delay_seconds=10, retry_condition_fn=may_pass)
def evaluate(
    loaded: LoadedModel, config: RunConfig, run: RunRef, adapter: FolderRef, dataset: DatasetRef
) -> EvalReport:
    """Score everyone on the same rows, unless this very contest has been held.

    Retried once because the champion may come over the network.
    """
    data = load_training_data(open_folder(dataset.folder, config))
    champion = fetch_champion(config, but_not=run.identity)
    key = contest_key(config, data, [adapter.digest, *([champion.adapter.digest] if champion else [])])
    folder = Path(run.path) / f"evaluation-{key[:12]}"
    if seal_digest(folder):
        get_run_logger().info("Evaluation reused: rows, settings and contestants are those of %s", folder)
    else:
        candidate = Contestant(loaded, load_trained_on(open_folder(adapter, config)))
        contest = hold_contest(candidate, _load(champion) if champion else None, data, config)
        save_contest(contest, Path(run.path), folder)
    scores = load_scores(folder)
    return EvalReport(
        folder=publish(folder),
        rows=scores["candidate"].rows,
        accuracy={name: found.accuracy for name, found in scores.items()},
        wrongly_favourable={name: found.wrongly_favourable for name, found in scores.items()},
        champion=champion.version if champion else None,
    )


def _load(champion: RegisteredRef) -> Contestant:
    adapter = Path(champion.adapter.path)
    return Contestant(load_adapted_model(Path(champion.base), adapter), load_trained_on(adapter))
