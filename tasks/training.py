"""Tasks from a base model to a saved adapter. They run in one process, and the loaded model passes between them."""

import os
from pathlib import Path

import torch
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from tasks.artifact_store import open_folder, publish, restore_progress, store_problems
from tasks.links import link_both_ways
from tasks.preflight import disk_problems
from tasks.progress import follow_journal
from tasks.recovery import NETWORK
from tasks.refs import DatasetRef, FolderRef, RunRef
from tasks.registry import fetch_champion, fetch_version
from tasks.tracking import log_private_file, open_tracking_run, send_points
from tasks.versions import ADAPTER_TAG, find_version
from training_core.config import RunConfig, SettingsError
from training_core.dataset.store import load_training_data
from training_core.distributed import train_on_devices
from training_core.evaluation.comparison import unseen_by_all
from training_core.folders import seal_digest
from training_core.model_setup import (
    LoadedModel,
    digest_base_model,
    fetch_base_model,
    load_adapted_model,
    load_model_and_tokenizer,
)
from training_core.trainer import train_model
from training_core.training.adapter import LEAKAGE_KEYS_FILE, load_leakage_keys, write_adapter
from training_core.training.compiler import compiler_problems
from training_core.training.fingerprint import run_fingerprint
from training_core.training.journal import read_journal


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
    restore_progress(folder, fingerprint)
    run_id = open_tracking_run(config, fingerprint, dataset, rows)
    link_both_ways(config, run_id)
    run = RunRef(fingerprint, str(folder), dataset.base_digest, run_id)
    registered = find_version(config, fingerprint)
    if registered and registered.tags[ADAPTER_TAG] != seal_digest(_adapter_folder(run)):
        return fetch_version(config, registered).run
    return run


def _require_worker_setup(config: RunConfig, dataset: DatasetRef) -> None:
    """The checks of preflight that depend on the machine, repeated on the machine that trains."""
    problems = [*store_problems(needed=True), *disk_problems(config, trained_here=True), *compiler_problems()]
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        problems.append("MLFLOW_TRACKING_URI is not set for this worker; set it to the server that all workers use")
    if digest_base_model(fetch_base_model(config.model_name, config.cache_dir)) != dataset.base_digest:
        what = f"model_name: {config.model_name!r} has other files on this machine than where the dataset was built"
        problems.append(f"{what}; copy the folder again, or let all workers download the same revision")
    if problems:
        raise SettingsError(problems)


def _require_unseen_rows(config: RunConfig, fingerprint: str, rows: Path) -> None:
    """Raise ``SettingsError`` when the champion cannot be loaded or was trained on all held-out rows."""
    champion = fetch_champion(config, but_not=fingerprint)
    if champion:
        known = load_leakage_keys(Path(champion.run.path))
        unseen_by_all([known], load_training_data(rows).held_out, config)


@task(task_run_name="load model", cache_policy=NO_CACHE, persist_result=False)
def load_model(config: RunConfig, run: RunRef) -> LoadedModel:
    """The four-bit base model with this run's finished adapter, or with a new adapter to train."""
    adapter = _adapter_folder(run)
    if seal_digest(adapter):
        return load_adapted_model(fetch_base_model(config.model_name, config.cache_dir), adapter)
    return load_model_and_tokenizer(config)


@task(task_run_name="fine-tune on all GPUs", cache_policy=NO_CACHE, persist_result=False)
def finetune_on_all_gpus(config: RunConfig, run: RunRef, dataset: DatasetRef) -> None:
    """Train with one process per GPU, up to the last checkpoint, from which ``finetune`` loads the adapter.

    Runs before this process loads a model, which would take the memory that one of these processes needs.
    """
    if not seal_digest(_adapter_folder(run)):
        rows = open_folder(dataset.folder, config)
        with follow_journal(config, run):
            train_on_devices(config, rows, Path(run.path), torch.cuda.device_count())


@task(task_run_name="fine-tune {run.fingerprint:.6}", cache_policy=NO_CACHE, persist_result=False)
def finetune(loaded: LoadedModel, config: RunConfig, run: RunRef, dataset: DatasetRef) -> None:
    """Train from the last complete checkpoint; does nothing when the adapter is finished.

    Has no retries: a model that failed half-way must be loaded again, so ``train-flow`` is retried as a whole.
    """
    journal = Path(run.path) / "journal.jsonl"
    if seal_digest(_adapter_folder(run)):
        send_points(config, run.tracking_run_id, read_journal(journal))
        get_run_logger().info("Adapter reused: %s was trained with the same settings, rows and base model", run.path)
        return
    with follow_journal(config, run):
        train_model(loaded, load_training_data(open_folder(dataset.folder, config)), config, Path(run.path))


@task(task_run_name="save adapter", cache_policy=NO_CACHE)
def save_adapter(loaded: LoadedModel, config: RunConfig, run: RunRef, dataset: DatasetRef) -> FolderRef:
    """Write the adapter folder, unless it is complete already, and publish it."""
    folder = _adapter_folder(run)
    if not seal_digest(folder):
        data = load_training_data(open_folder(dataset.folder, config))
        write_adapter(loaded.model, loaded.tokenizer, config, data.leakage_keys, folder)
    log_private_file(config, run, LEAKAGE_KEYS_FILE)
    return publish(folder)


def _adapter_folder(run: RunRef) -> Path:
    return Path(run.path) / "adapter"
