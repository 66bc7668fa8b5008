"""The registry's commands as a team runs them: against an MLflow server, with a Prefect server that hears of it."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deployments.postgres import find_postgres, postgres
from flows import registry_cli
from flows.local_servers import mlflow_server
from tasks import tracking
from tasks.ledger import GATE, Entry, VersionId, read_ledger
from tasks.versions import CHAMPION, PREVIOUS, decide_once, named_version, version_id
from training_core.config import RunConfig

pytestmark = pytest.mark.slow

NAME = "served"
ONE, TWO, THREE = (VersionId(str(number), f"fingerprint {number}") for number in (1, 2, 3))


@contextlib.contextmanager
def database(kind: str, folder: Path) -> Iterator[str]:
    """The URL of a database for MLflow."""
    if kind == "SQLite":
        yield f"sqlite:///{folder}/mlflow.db"
        return
    programs = find_postgres()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    with postgres(programs, folder / "data", ("mlflow",)) as server:
        yield server.url("mlflow", "psycopg2")


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def config(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunConfig]:
    """Three versions behind a server; version 2 is champion after version 1."""
    monkeypatch.setenv("COLUMNS", "200")
    # Not in pytest's folders, to which PostgreSQL's user has no access when root runs the tests.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        with (
            database(request.param, folder) as url,
            mlflow_server(url, folder / "artifacts", preferred_port=0) as server,
        ):
            monkeypatch.setenv("MLFLOW_TRACKING_URI", server.wait())
            config = RunConfig(registered_model_name=NAME, output_dir=str(folder / "runs"))
            _register(config)
            yield config


def _register(config: RunConfig) -> None:
    client = tracking.connect(config)
    client.create_registered_model(NAME)
    for one in (ONE, TWO, THREE):
        client.create_model_version(NAME, "s3://nowhere/model", tags={tracking.FINGERPRINT_TAG: one.fingerprint})
    for one in (ONE, TWO):
        decide_once(config, lambda found, one=one: Entry(GATE, "becomes champion", one, found.champion, one, "better"))


def alias(config: RunConfig, name: str) -> VersionId | None:
    return version_id(named_version(config, name))


def test_commands_work_against_an_mlflow_server(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    registry_cli.main("promote", [NAME, "3", "--reason", "asked for by the team"])
    assert (alias(config, CHAMPION), alias(config, PREVIOUS)) == (THREE, TWO)
    registry_cli.main("reject", [NAME, "2", "--reason", "rude answers"])
    registry_cli.main("rollback", [NAME, "--reason", "too generous"])
    assert (alias(config, CHAMPION), alias(config, PREVIOUS)) == (ONE, None)
    assert set(read_ledger(config).withdrawn) == {TWO.fingerprint, THREE.fingerprint}
    capsys.readouterr()
    registry_cli.main("history", [NAME])
    registry_cli.main("versions", [NAME])
    shown = capsys.readouterr().out
    for part in ("2 → 3", "3 → 1", "rude answers", "rejected", "withdrawn", "champion"):
        assert part in shown
    with pytest.raises(SystemExit) as ended:
        registry_cli.main("promote", [NAME, "9", "--reason", "x"])
    assert ended.value.code == 2
    assert f"see what is there: sft-flow versions {NAME}\n" in capsys.readouterr().err
    assert not Path(config.output_dir).exists(), "nothing is written next to a server"


def verdicts(api: str, event: str) -> list[str]:
    asked = {"filter": {"event": {"name": [event]}}}
    found = httpx.post(f"{api}/events/filter", json=asked, timeout=30).raise_for_status().json()["events"]
    return [one["payload"]["verdict"] for one in found]


def test_decisions_by_hand_reach_the_prefect_server(
    tmp_path: Path, prefect_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    _register(RunConfig(registered_model_name=NAME, output_dir=str(tmp_path)))
    expected = {
        "sft-flow.promoted": ["promote", NAME, "3"],
        "sft-flow.rejected": ["reject", NAME, "1"],
        "sft-flow.rolled-back": ["rollback", NAME],
    }
    environment = os.environ | {"PREFECT_API_URL": prefect_address, "PREFECT_HOME": str(tmp_path)}
    for event, words in expected.items():
        command = [sys.executable, "-c", "from flows.cli import main; main()", *words, "--output_dir", str(tmp_path)]
        command += ["--reason", f"because of {event}"]
        found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert found.returncode == 0, found.stderr
    deadline = time.monotonic() + 60
    for event in expected:
        while not any(f"because of {event}" in text for text in verdicts(prefect_address, event)):
            assert time.monotonic() < deadline, event
            time.sleep(0.5)
