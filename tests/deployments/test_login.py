"""With a login, both servers turn away who does not give it, workers run, and its password is written nowhere."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from deployments import up
from deployments.up import LOGIN, Servers, team
from training_core.config import SettingsError

ROOT = Path(__file__).parents[2]
USER, PASSWORD = "team", "pass-word-never-seen"
TINY = {"max_steps": 4, "gradient_accumulation_steps": 2, "max_eval_rows": 6, "eval_max_new_tokens": 12}
MLFLOW_API = "/api/2.0/mlflow/experiments/get?experiment_id=0"


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """Not in pytest's folders, to which PostgreSQL's user has no access when root runs the tests."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def servers(home: Path) -> Iterator[Servers]:
    with team(home, f"{USER}:{PASSWORD}") as found:
        yield found


def asked(servers: Servers, password: str | None) -> list[int]:
    """The status of an answer of each server."""
    login = (USER, password) if password else None
    addresses = (f"{servers.prefect.address}/api/admin/version", f"{servers.mlflow.address}{MLFLOW_API}")
    return [httpx.get(address, auth=login, timeout=30).status_code for address in addresses]


def run_demo(servers: Servers) -> dict[str, Any]:
    with httpx.Client(base_url=f"{servers.prefect.address}/api", auth=(USER, PASSWORD), timeout=30) as api:
        demo = api.get("/deployments/name/sft-flow/demo").json()["id"]
        run = api.post(f"/deployments/{demo}/create_flow_run", json={"parameters": TINY}).json()
        while run["state_type"] not in ("COMPLETED", "FAILED", "CRASHED"):
            time.sleep(1)
            run = api.get(f"/flow_runs/{run['id']}").json()
        return dict(run)


def command(servers: Servers, password: str, *words: str) -> subprocess.CompletedProcess[str]:
    """An `sft-flow` command against both servers."""
    environment = servers.worker_environment() | {
        "PREFECT_API_AUTH_STRING": f"{USER}:{password}",
        "MLFLOW_TRACKING_PASSWORD": password,
    }
    program = [sys.executable, "-c", "from flows.cli import main; main()", *words]
    return subprocess.run(program, env=os.environ | environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_run_goes_through_the_login_and_writes_it_nowhere(servers: Servers, home: Path) -> None:
    assert asked(servers, None) == asked(servers, "another-password") == [401, 401]
    assert asked(servers, PASSWORD) == [200, 200]
    run = run_demo(servers)
    assert run["state_name"] == "Completed", run["state"]["message"]

    shown = command(servers, PASSWORD, "versions", "sft-flow-demo")
    assert shown.returncode == 0, shown.stderr
    refused = command(servers, "another-password", "versions", "sft-flow-demo")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "does not accept the login; set PREFECT_API_AUTH_STRING=USER:PASSWORD" in refused.stderr

    children = psutil.Process().children(recursive=True)
    assert len(children) > 3
    assert not [child for child in children if PASSWORD in " ".join(child.cmdline())]
    written = [path for path in home.rglob("*") if path.is_file()]
    assert len(written) > 100
    assert not [path for path in written if PASSWORD.encode() in path.read_bytes()]


@pytest.mark.parametrize("login", ["no-colon-in-it-at-all", ":only-a-password", "user:short"])
def test_login_that_no_server_takes_is_refused(monkeypatch: pytest.MonkeyPatch, login: str) -> None:
    monkeypatch.setenv(LOGIN, login)
    with pytest.raises(SettingsError, match=r"SFT_FLOW_LOGIN: expected USER:PASSWORD") as caught:
        up.read_login()
    assert login not in str(caught.value)


def test_without_a_login_nothing_asks_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOGIN, raising=False)
    assert up.read_login() == ""
