"""Tasks from a base model to a published adapter, on the machine that trains."""

import os
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from tasks.artifact_store import open_folder, publish, restore_progress, store_problems
from tasks.links import link_both_ways
from tasks.preflight import disk_problems
from tasks.progress import follow_journal
from tasks.recovery import NETWORK
from tasks.refs import DatasetRef, FolderRef, RunRef
from tasks.registry import fetch_champion, fetch_version
from tasks.run_status import FolderHeldError
from tasks.tracking import log_private_file, open_tracking_run, send_points
from tasks.versions import ADAPTER_TAG, find_version
from training_core.config import RunConfig, SettingsError
from training_core.dataset.store import load_training_data
from training_core.distributed import ADAPTER_FOLDER, train_adapter
from training_core.evaluation.comparison import unseen_by_all
from training_core.folders import seal_digest
from training_core.model_setup import digest_base_model, fetch_base_model
from training_core.training.adapter import LEAKAGE_KEYS_FILE, load_leakage_keys
from training_core.training.compiler import compiler_problems
from training_core.training.fingerprint import run_fingerprint
from training_core.training.gpu_check import gpu_problems
from training_core.training.gpu_lock import SECONDS_TO_WAIT
from training_core.training.journal import read_journal
from training_core.training.sharding import sharding_problems
from training_core.utils import pick_precision


@task(task_run_name="open run", **NETWORK)
def open_run(config: RunConfig, dataset: DatasetRef) -> RunRef:
    """Find or create the folder and the MLflow run of this run fingerprint.

    The folder gets the newest checkpoint of the artifact store; when the adapter is registered already, the registry's
    files are used. Retried because the base model may be downloaded and the tracking server is asked. Raises
    ``SettingsError`` for problems that would end the run after its training.
    """
    if config.train_on:
        _require_worker_setup(config, dataset)
    fingerprint = run_fingerprint(config, dataset.digest, dataset.base_digest)
    rows = open_folder(dataset.folder, config)
    _require_unseen_rows(config, fingerprint, rows)
    folder = Path(config.output_dir).resolve() / fingerprint[:12]
    folder.mkdir(parents=True, exist_ok=True)
    if restored := restore_progress(folder, fingerprint):
        get_run_logger().info("Checkpoint %d downloaded, which another machine uploaded", restored)
    run_id = open_tracking_run(config, fingerprint, dataset, rows)
    link_both_ways(config, run_id)
    run = RunRef(fingerprint, str(folder), dataset.base_digest, run_id, dataset.base_commit)
    registered = find_version(config, fingerprint)
    if registered and registered.tags[ADAPTER_TAG] != seal_digest(_adapter_folder(run)):
        return fetch_version(config, registered).run
    return run


def _require_worker_setup(config: RunConfig, dataset: DatasetRef) -> None:
    """The checks of preflight that depend on the machine, repeated on the machine that trains."""
    pick_precision(config.precision)
    problems = [
        *store_problems(needed=True),
        *disk_problems(config, trained_here=True),
        *gpu_problems(gpu_expected=True),
        *compiler_problems(),
        *sharding_problems(config.sharding, torch.cuda.device_count()),
    ]
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        problems.append("MLFLOW_TRACKING_URI is not set for this worker; set it to the server that all workers use")
    base = fetch_base_model(config.model_name, config.cache_dir, config.model_revision)
    if digest_base_model(base) != dataset.base_digest:
        what = f"model_name: {config.model_name!r} has other files on this machine than where the dataset was built"
        problems.append(f"{what}; copy the folder again, or set model_revision to one commit")
    if problems:
        raise SettingsError(problems)


def _require_unseen_rows(config: RunConfig, fingerprint: str, rows: Path) -> None:
    """Raise ``SettingsError`` when the champion cannot be loaded or was trained on all held-out rows."""
    champion = fetch_champion(config, but_not=fingerprint)
    if champion:
        known = load_leakage_keys(Path(champion.run.path))
        unseen_by_all([known], load_training_data(rows).held_out, config)


@task(task_run_name="fine-tune {run.fingerprint:.6}", cache_policy=NO_CACHE, persist_result=False)
def finetune(config: RunConfig, run: RunRef, dataset: DatasetRef) -> None:
    """Train from the last complete checkpoint and write the adapter; does nothing when it is written already.

    Has no retries: ``train-flow`` is retried as a whole. On GPUs the training has processes of its own, so that a
    retry never loads a second model next to one that failed.
    """
    _wait_for_other_process(Path(run.path))
    if seal_digest(_adapter_folder(run)):
        send_points(config, run.tracking_run_id, read_journal(Path(run.path) / "journal.jsonl"))
        get_run_logger().info("Adapter reused: %s was trained with the same settings, rows and base model", run.path)
        return
    with follow_journal(config, run):
        train_adapter(config, open_folder(dataset.folder, config), Path(run.path))


def _wait_for_other_process(folder: Path) -> None:
    """Until no other process trains in the folder, such as one that has just lost its parent. Raises
    ``FolderHeldError`` when that goes on."""
    try:
        with FileLock(folder / "training.lock", timeout=SECONDS_TO_WAIT):
            pass
    except Timeout as error:
        what = f"output_dir: another process trains the same rows and settings in {str(folder)!r}"
        raise FolderHeldError([f"{what}; wait for its end: the same command then uses its adapter"]) from error


@task(task_run_name="publish adapter", cache_policy=NO_CACHE)
def publish_adapter(config: RunConfig, run: RunRef) -> FolderRef:
    """Copy the adapter to the artifact store, if there is one, and what it was trained on to the tracking server."""
    log_private_file(config, run, LEAKAGE_KEYS_FILE)
    return publish(_adapter_folder(run))


def _adapter_folder(run: RunRef) -> Path:
    return Path(run.path) / ADAPTER_FOLDER
