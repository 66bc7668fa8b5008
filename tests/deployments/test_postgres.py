"""Prefect and MLflow on PostgreSQL, as a team runs them."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.deploy import deploy
from deployments.postgres import Postgres, find_postgres, is_accessible, postgres
from flows.local_servers import mlflow_server, prefect_server
from tasks import registry, tracking
from tasks.refs import DatasetRef, EvalReport, FolderRef, RunRef, TrainedRef
from training_core.config import RunConfig
from training_core.folders import seal
from training_core.training.journal import Point

PROGRAMS = find_postgres()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROGRAMS is None, reason="PostgreSQL is not installed")]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Not in pytest's folders, to which PostgreSQL's user has no access when root runs the tests."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def database(folder: Path) -> Iterator[Postgres]:
    assert PROGRAMS
    with postgres(PROGRAMS, folder / "data", ("prefect", "mlflow")) as server:
        yield server


def test_postgres_folder_must_be_accessible_to_its_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getuid", lambda: 0)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    assert not is_accessible(closed / "data")
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        assert is_accessible(Path(name) / "data")


def test_prefect_takes_the_whole_topology_once_and_schedules_runs(folder: Path, database: Postgres) -> None:
    url = database.url("prefect", "asyncpg")
    with (
        prefect_server(folder / "prefect", database=url, for_workers=True) as server,
        temporary_settings({PREFECT_API_URL: f"{server.wait()}/api"}),
        get_client(sync_client=True) as client,
    ):
        assert {outcome for outcome, *_ in deploy(client, "process", folder.as_uri())} == {"created", "unchanged"}
        assert {outcome for outcome, *_ in deploy(client, "process", folder.as_uri())} == {"unchanged"}
        assert not list((folder / "prefect").glob("*.db"))


def test_mlflow_on_postgres_keeps_one_run_and_version(
    folder: Path, database: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "base").mkdir()
    config = RunConfig(output_dir=str(tmp_path), model_name=str(tmp_path / "base"), dataset_path="rows.jsonl")
    for name in ("report.json", "rejected.jsonl"):
        (tmp_path / name).touch()
    adapter, evaluation = tmp_path / "adapter", tmp_path / "evaluation"
    config.save(adapter)
    evaluation.mkdir()
    (evaluation / "scores.json").write_text(json.dumps({"candidate": {"accuracy": 0.5, "by_group": {}}}))
    rows, scores = FolderRef(str(tmp_path), None, ""), FolderRef(str(evaluation), None, "e")
    dataset = DatasetRef(rows, "d" * 64, 10, 2, "b" * 64)
    points = [Point(step, 3, 1e9 + step, {"loss": 1 / step}) for step in (1, 2, 3)]
    with mlflow_server(database.url("mlflow", "psycopg2"), folder / "artifacts", preferred_port=0) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.wait())
        run_ids = {tracking.open_tracking_run(config, "i" * 64, dataset, tmp_path) for _ in range(2)}
        (run_id,) = run_ids
        for _ in range(2):
            tracking.send_points(config, run_id, points)
        client = tracking.connect(config)
        assert [point.step for point in client.get_metric_history(run_id, "loss")] == [1, 2, 3]
        run = RunRef("i" * 64, str(tmp_path), "b", run_id)
        report = EvalReport(scores, 2, {"candidate": 0.5}, {"candidate": 0.0}, champion=None)
        trained = TrainedRef(run, FolderRef(str(adapter), None, seal(adapter)), report)
        long_text = "A description that PostgreSQL would reject for its length. " * 200
        assert {registry.find_or_create_version(config, trained, long_text) for _ in range(2)} == {"1"}
