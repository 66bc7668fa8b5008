"""What tests of the registry share: one store for all of them, in it a model for each, and what a run leaves behind."""

import json
from pathlib import Path

import pytest

from tasks import tracking
from tasks.refs import DatasetRef, EvalReport, FolderRef, RunRef, TrainedRef
from training_core.config import RunConfig
from training_core.folders import seal
from training_core.model_setup import digest_base_model


@pytest.fixture(scope="session")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def config(
    output_dir: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> RunConfig:
    """Settings with a registered model of this test's own, in one store for all tests."""
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
    """An adapter folder and an evaluation folder such as a run leaves behind; the weights do not matter here."""
    adapter, evaluation = tmp_path / "adapter", tmp_path / "evaluation"
    config.save(adapter)
    (adapter / "adapter_model.safetensors").write_bytes(config.registered_model_name.encode())
    evaluation.mkdir()
    (evaluation / "scores.json").write_text(json.dumps({"candidate": {"accuracy": 0.5, "by_group": {}}}))
    run_id = tracking.open_tracking_run(config, fingerprint, dataset, tmp_path)
    run = RunRef(fingerprint, str(tmp_path), digest_base_model(tmp_path / "base"), run_id)
    report = EvalReport(FolderRef(str(evaluation), None, "e"), 2, {"candidate": 0.5}, {"candidate": 0.0}, None)
    return TrainedRef(run, FolderRef(str(adapter), None, seal(adapter)), report)
