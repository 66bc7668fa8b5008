"""Problems that would end a run hours later are found before a GPU is requested, all at once."""

import dataclasses
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.logging import disable_run_logger
from prefect.types.entrypoint import EntrypointType

from flows.train_flow import train_flow
from tasks import artifact_store, registry, tracking, versions
from tasks.data import build_dataset
from tasks.preflight import GPU_MEMORY, preflight
from tasks.recovery import RETRIES, may_be_gone
from tasks.refs import DatasetRef, FolderRef, TrainedRef
from training_core.config import RunConfig, SettingsError
from training_core.model_setup import digest_base_model

pytestmark = pytest.mark.slow

# Read only when the memory of a GPU is checked.
DATASET = DatasetRef(FolderRef("nowhere", None, ""), "", 0, 0, "")
UNREACHABLE = "http://127.0.0.1:9"  # no server listens on the discard port


@pytest.fixture
def ready(tiny_base: Path, tmp_path: Path, output_dir: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Settings of a run that has all it needs."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv(artifact_store.VARIABLE, (tmp_path / "store").as_uri())
    return RunConfig(model_name=str(tiny_base), output_dir=str(output_dir))


def problems_of(config: RunConfig) -> list[str]:
    with disable_run_logger(), pytest.raises(SettingsError) as caught:
        preflight.fn(config, DATASET)
    return caught.value.problems


def test_preflight_passes_and_writes_nothing(ready: RunConfig, tmp_path: Path) -> None:
    preflight.fn(ready, DATASET)
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert versions.named_version(ready, versions.CANDIDATE) is None
    assert tracking.connect(ready).search_registered_models(f"name = '{ready.registered_model_name}'") == []


def test_preflight_lists_all_problems_at_once(
    ready: RunConfig, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv(artifact_store.VARIABLE, "file:///proc/none")
    lacking = dataclasses.replace(ready, train_on="train-flow/missing", lora_r=10**10)
    assert [problem.partition(":")[0] for problem in problems_of(lacking)] == [
        "MLFLOW_TRACKING_URI",
        artifact_store.VARIABLE,
        "output_dir",
        "train_on",
    ]


def test_preflight_is_retried_when_a_server_is_away(ready: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", UNREACHABLE)
    with disable_run_logger(), pytest.raises(ConnectionError, match=r"MLFLOW_TRACKING_URI: .* no answer") as raised:
        preflight.fn(ready, DATASET)
    assert may_be_gone(raised.value, tries=RETRIES + 1)


def test_preflight_is_retried_when_a_server_goes_away_meanwhile(
    ready: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", UNREACHABLE)
    monkeypatch.setattr("tasks.preflight.require_answers", lambda *_: None)
    monkeypatch.setattr("tasks.tracking.server_problems", lambda *_: [])
    with disable_run_logger(), pytest.raises(versions.RegistryError) as raised:
        preflight.fn(ready, DATASET)
    assert may_be_gone(raised.value, tries=RETRIES + 1)


def test_preflight_counts_checkpoints_where_the_training_runs(ready: RunConfig) -> None:
    (problem,) = problems_of(dataclasses.replace(ready, save_total_limit=10**9))
    assert "save_total_limit" in problem and "GiB" in problem


def test_preflight_requires_a_store_for_another_pool(
    ready: RunConfig, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(artifact_store.VARIABLE)
    problems = problems_of(dataclasses.replace(ready, train_on="train-flow/missing"))
    assert [problem.split(" ")[0] for problem in problems] == [artifact_store.VARIABLE, "train_on:"]


def test_preflight_shows_how_to_restore_a_deleted_experiment(ready: RunConfig, tmp_path: Path) -> None:
    own = dataclasses.replace(ready, output_dir=str(tmp_path))
    client = tracking.connect(own)
    number = client.create_experiment(tracking.EXPERIMENT)
    client.delete_experiment(number)
    (problem,) = problems_of(own)
    assert f"mlflow experiments restore --experiment-id {number}" in problem
    client.restore_experiment(number)
    preflight.fn(own, DATASET)


def test_preflight_asks_for_the_gpu_only_where_it_trains(
    ready: RunConfig, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.preflight.gpu_problems", lambda gpu_expected: [f"GPU: expected {gpu_expected}"])
    monkeypatch.setattr("tasks.preflight.compiler_problems", lambda: ["GPU: no compiler"])
    assert problems_of(ready) == ["GPU: expected False", "GPU: no compiler"]
    (problem,) = problems_of(dataclasses.replace(ready, train_on="train-flow/missing"))
    assert problem.startswith("train_on")


def warnings_about(pool: str, ready: RunConfig, caplog: pytest.LogCaptureFixture) -> str:
    train_flow.to_deployment("idle", work_pool_name=pool, entrypoint_type=EntrypointType.MODULE_PATH).apply()
    logger = logging.getLogger("prefect.task_runs")
    logger.addHandler(caplog.handler)
    try:
        preflight(dataclasses.replace(ready, train_on="train-flow/idle"), DATASET)
    finally:
        logger.removeHandler(caplog.handler)
    return caplog.text


def test_preflight_warns_about_a_pool_without_a_worker(
    ready: RunConfig, prefect_api: str, caplog: pytest.LogCaptureFixture
) -> None:
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="idle", type="process"))
    warned = warnings_about("idle", ready, caplog)
    assert "Pool idle has no worker online: the training waits up to 24 hours" in warned
    assert "prefect worker start --pool idle" in warned


def test_preflight_warns_about_a_paused_pool_with_a_command_that_resumes_it(
    ready: RunConfig, prefect_api: str, caplog: pytest.LogCaptureFixture
) -> None:
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="at night", type="process", is_paused=True))
        (command,) = set(re.findall(r"prefect work-pool resume 'at night'", warnings_about("at night", ready, caplog)))
        environment = os.environ | {"PREFECT_API_URL": prefect_api}
        run = [sys.executable, "-m", *shlex.split(command)]
        subprocess.run(run, env=environment, check=True, capture_output=True, timeout=120)
        assert not client.read_work_pool("at night").is_paused


def test_preflight_warns_about_a_base_with_other_files(
    config: RunConfig,
    prefect_api: str,
    trained: TrainedRef,
    dataset: DatasetRef,
    tiny_base: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry.find_or_create_version(config, trained, "")
    shutil.copytree(tiny_base, config.model_name, dirs_exist_ok=True)
    found = digest_base_model(tiny_base)
    logger = logging.getLogger("prefect.task_runs")
    logger.addHandler(caplog.handler)
    try:
        preflight(config, dataclasses.replace(dataset, base_digest=found))
    finally:
        logger.removeHandler(caplog.handler)
    assert f"is not what it was: version 1 was trained on files with digest {dataset.base_digest}" in caplog.text
    assert f"this run on {found}" in caplog.text


def test_preflight_rejects_a_training_too_large_for_the_gpus(
    ready: RunConfig, sample_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with disable_run_logger():
        dataset = build_dataset.fn(dataclasses.replace(ready, dataset_path=str(sample_rows)))
        monkeypatch.setenv(GPU_MEMORY, "80")
        preflight.fn(ready, dataset)
        monkeypatch.setenv(GPU_MEMORY, "0.01")
        with pytest.raises(
            SettingsError, match=r"0.01 GiB, the training needs at least .*; set per_device_train_batch_size"
        ):
            preflight.fn(ready, dataset)
