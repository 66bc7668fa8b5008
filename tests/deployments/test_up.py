"""Workers of the team set-up: one has the time that its training needs to end, one is the janitor's alone."""

import signal
import time
from pathlib import Path
from unittest.mock import MagicMock, Mock

import httpx
import pytest

from deployments import up
from training_core.training import interruption


def test_ending_worker_waits_for_the_checkpoint_of_its_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = MagicMock()
    monkeypatch.setattr(up, "child_process", start)
    with up.worker("gpu", tmp_path, Mock(worker_environment=dict)):
        pass
    assert start.call_args.kwargs["seconds_to_end"] > interruption._SECONDS_TO_SAVE[signal.SIGTERM]


@pytest.mark.slow
def test_janitor_runs_while_no_other_run_of_its_pool_does(tmp_path: Path) -> None:
    """Runs that wait for their training may occupy all places of the CPU pool's worker; here it has none."""
    with up.servers(tmp_path) as found:
        list(up.deploy_to(found))
        with (
            up.worker("janitor", tmp_path, found),
            httpx.Client(base_url=f"{found.prefect.address}/api", timeout=60) as api,
        ):
            runs = [_start(api, name) for name in ("sft-flow/demo", "janitor-flow/often")]
            while (states := [api.get(f"/flow_runs/{run}").json()["state_type"] for run in runs])[1] != "COMPLETED":
                assert states[1] in ("SCHEDULED", "PENDING", "RUNNING")
                time.sleep(0.5)
    assert states[0] == "SCHEDULED"


def _start(api: httpx.Client, deployment: str) -> str:
    found = api.get(f"/deployments/name/{deployment}").json()["id"]
    return str(api.post(f"/deployments/{found}/create_flow_run", json={}).json()["id"])
