"""One MLflow run per fingerprint after crashes, with nothing logged twice. On a real SQLite store."""

import dataclasses
import json
import os
from pathlib import Path

import mlflow
import pytest

from tasks import tracking
from tasks.refs import DatasetRef, TrainedRef
from training_core.config import RunConfig
from training_core.training.journal import Point

pytestmark = pytest.mark.slow


def test_tracking_run_is_one_per_fingerprint_after_a_kill(
    config: RunConfig, dataset: DatasetRef, tmp_path: Path
) -> None:
    client = tracking.connect(config)
    experiment = tracking.experiment_id(client, config)
    bare = client.create_run(experiment, tags={tracking.FINGERPRINT_TAG: "killed"})  # then the process was killed
    assert tracking.open_tracking_run(config, "killed", dataset, tmp_path) == bare.info.run_id
    later = dataclasses.replace(config, max_eval_rows=7)  # not part of the fingerprint; logged parameters stay
    assert tracking.open_tracking_run(later, "killed", dataset, tmp_path) == bare.info.run_id
    run = client.get_run(bare.info.run_id)
    assert run.data.params.keys() == dataclasses.asdict(config).keys()
    assert run.data.params["max_eval_rows"] == str(config.max_eval_rows)
    assert {file.path for file in client.list_artifacts(run.info.run_id, "data")} == {
        "data/report.json",
        "data/rejected.jsonl",
    }
    assert [given.dataset.digest for given in run.inputs.dataset_inputs] == [dataset.digest[:36]]


def test_tracking_run_keeps_revision_and_commit_of_the_base(
    config: RunConfig, dataset: DatasetRef, tmp_path: Path
) -> None:
    asked, commit = dataclasses.replace(config, model_revision="v1"), "1" * 40
    pinned = dataclasses.replace(dataset, base_commit=commit)
    run_id = tracking.open_tracking_run(asked, "pinned", pinned, tmp_path)
    run = tracking.connect(config).get_run(run_id)
    assert (run.data.params["model_revision"], run.data.tags["sft_flow.base_commit"]) == ("v1", commit)
    saved = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/run_config.json")
    assert saved["model_revision"] == "v1"


def test_tracking_uri_that_is_empty_counts_as_unset(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    unset = tracking.tracking_uri(config)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert tracking.tracking_uri(config) == unset == f"sqlite:///{config.output_dir}/mlflow.db"


def test_tracking_run_keeps_the_name_it_was_created_with(
    config: RunConfig, dataset: DatasetRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "tracking_run_name", lambda _: "m samples.jsonl 2026-11-27")
    run_id = tracking.open_tracking_run(config, "named", dataset, tmp_path)
    monkeypatch.setattr(tracking, "tracking_run_name", lambda _: "m samples.jsonl 2026-11-28")
    assert tracking.open_tracking_run(config, "named", dataset, tmp_path) == run_id
    assert tracking.connect(config).get_run(run_id).info.run_name == "m samples.jsonl 2026-11-27"


def test_tracking_stores_a_point_sent_twice_once(config: RunConfig, trained: TrainedRef) -> None:
    points = [Point(step, 3, 1000.0 + step, {"loss": 1.0 / step}) for step in (1, 2, 3)]
    tracking.send_points(config, trained.run.tracking_run_id, points[:2])
    tracking.send_points(config, trained.run.tracking_run_id, points)
    history = tracking.connect(config).get_metric_history(trained.run.tracking_run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


def test_tracking_keeps_scores_of_an_earlier_evaluation(config: RunConfig, trained: TrainedRef) -> None:
    client, run_id = tracking.connect(config), trained.run.tracking_run_id
    tracking.log_results(config, run_id, trained.report)
    scores = Path(trained.report.folder.path) / "scores.json"
    scores.write_text(json.dumps({"candidate": {"accuracy": 0.75}}))
    os.utime(scores, (scores.stat().st_mtime + 60,) * 2)
    again = dataclasses.replace(trained.report, folder=dataclasses.replace(trained.report.folder, digest="f"))
    tracking.log_results(config, run_id, again)
    tracking.log_results(config, run_id, again)
    assert [found.value for found in client.get_metric_history(run_id, "candidate/accuracy")] == [0.5, 0.75]
    assert client.get_run(run_id).data.metrics["candidate/accuracy"] == 0.75
    assert {file.path for file in client.list_artifacts(run_id, "evaluation")} == {"evaluation/e", "evaluation/f"}
