"""Shared by tests of tasks: all tasks, one MLflow store, a registered model per test, and results of a run."""

import importlib
import json
import pkgutil
from pathlib import Path

import pytest
from prefect import Task

import tasks
from tasks import tracking
from tasks.refs import DatasetRef, EvalReport, FolderRef, RunRef, TrainedRef
from training_core.config import RunConfig
from training_core.folders import seal
from training_core.model_setup import digest_base_model


@pytest.fixture(scope="session")
def all_tasks() -> list[Task[..., object]]:
    names = [module.name for module in pkgutil.iter_modules(tasks.__path__, "tasks.")]
    names.remove("tasks.served_adapter")  # importing it registers a model with MLflow
    values = [value for name in names for value in vars(importlib.import_module(name)).values()]
    return [value for value in values if isinstance(value, Task)]


@pytest.fixture(scope="session")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def config(
    output_dir: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> RunConfig:
    """Settings with a registered model for this test alone, in the MLflow store of all tests."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    base = tmp_path / "base"
    base.mkdir()
    names = {"registered_model_name": request.node.name, "model_name": str(base)}
    return RunConfig(output_dir=str(output_dir), dataset_path="rows.jsonl", **names)


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetRef:
    for name in ("report.json", "rejected.jsonl"):
        (tmp_path / name).touch()
    return DatasetRef(FolderRef(str(tmp_path), None, ""), "d" * 64, 10, 2, digest_base_model(tmp_path / "base"))


@pytest.fixture
def fingerprint(config: RunConfig) -> str:
    return config.registered_model_name.ljust(64, "0")


@pytest.fixture
def trained(config: RunConfig, dataset: DatasetRef, fingerprint: str, tmp_path: Path) -> TrainedRef:
    """The adapter and evaluation folders of a finished run, with dummy weights."""
    adapter, evaluation = tmp_path / "adapter", tmp_path / "evaluation"
    config.save(adapter)
    (adapter / "adapter_model.safetensors").write_bytes(config.registered_model_name.encode())
    evaluation.mkdir()
    (evaluation / "scores.json").write_text(json.dumps({"candidate": {"accuracy": 0.5, "by_group": {}}}))
    run_id = tracking.open_tracking_run(config, fingerprint, dataset, tmp_path)
    run = RunRef(fingerprint, str(tmp_path), digest_base_model(tmp_path / "base"), run_id)
    report = EvalReport(FolderRef(str(evaluation), None, "e"), 2, {"candidate": 0.5}, {"candidate": 0.0}, None)
    return TrainedRef(run, FolderRef(str(adapter), None, seal(adapter)), report)
