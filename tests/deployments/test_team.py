"""Runs of the team set-up: two workers that share only servers and artifact store, and no process left at the end."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from deployments.up import Servers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
TINY = {"max_steps": 8, "gradient_accumulation_steps": 2, "max_eval_rows": 6, "eval_max_new_tokens": 12}


def start(servers: Servers, **settings: Any) -> str:
    """The id of a new run of the demo."""
    api = f"{servers.prefect.address}/api"
    demo = httpx.get(f"{api}/deployments/name/sft-flow/demo", timeout=30).json()["id"]
    wanted = {"parameters": TINY | settings}
    return str(httpx.post(f"{api}/deployments/{demo}/create_flow_run", json=wanted, timeout=30).json()["id"])


def wait_for_end(servers: Servers, run_id: str) -> dict[str, Any]:
    while (run := find_run(servers, id={"any_": [run_id]}))["state"]["type"] not in (
        "COMPLETED",
        "FAILED",
        "CANCELLED",
    ):
        time.sleep(1)
    return run


def find_run(servers: Servers, **run_filter: Any) -> dict[str, Any]:
    """The only run that the filter finds."""
    wanted = {"flow_runs": run_filter}
    (run,) = httpx.post(f"{servers.prefect.address}/api/flow_runs/filter", json=wanted, timeout=30).json()
    return dict(run)


def training_half_way(home: Path, known: set[Path]) -> tuple[Path, psutil.Process]:
    """The folder of a training that wrote a checkpoint after those ``known``, and its process."""
    while not (new := checkpoints(home) - known):
        time.sleep(0.2)
    folder = min(new).parents[2]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.cwd() == str(home / "gpu") and "prefect.engine" in process.cmdline():
                return folder, process
    raise AssertionError("found no process that trains")


def checkpoints(home: Path) -> set[Path]:
    return set(home.glob("gpu/runs/*/checkpoints/checkpoint-*/manifest.json"))


def adapters_of(folders: Iterable[Path], seed: int) -> list[Path]:
    """The adapters of runs with this seed; other tests use the same team."""
    configs = [folder / "run_config.json" for folder in folders]
    return [path.parent for path in configs if path.exists() and json.loads(path.read_text())["seed"] == seed]


def test_team_run_uses_two_workers_and_repeats_nothing(servers: Servers, home: Path) -> None:
    run = wait_for_end(servers, start(servers, seed=5))
    assert run["state"]["name"] == "Completed", run["state"]["message"]
    assert re.fullmatch("sft-flow-demo [0-9a-f]{6}", run["name"])
    cpu, gpu = home / "cpu" / "runs", home / "gpu" / "runs"
    assert list(cpu.glob("datasets/*/train.arrow"))
    assert not list(gpu.glob("datasets/*"))
    assert len(adapters_of(gpu.glob("*/adapter"), seed=5)) == 1
    assert not [*cpu.glob("*/adapter"), *adapters_of(cpu.glob("fetched/*"), seed=5)]
    assert list(gpu.glob("fetched/*/train.arrow"))
    assert list((home / "store").glob("runs/*/checkpoint-8/manifest.json"))

    again = wait_for_end(servers, start(servers, seed=5))
    assert again["state"]["name"] == "NothingNew", again["state"]["message"]
    assert again["total_run_time"] < run["total_run_time"]


def test_team_run_cancelled_stops_its_training(servers: Servers, home: Path) -> None:
    known = checkpoints(home)
    run_id = start(servers, seed=6, max_steps=1000, save_steps=2)
    _, training = training_half_way(home, known)
    cancelling = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    httpx.post(f"{servers.prefect.address}/api/flow_runs/{run_id}/set_state", json=cancelling, timeout=30)
    training.wait(timeout=30)
    assert wait_for_end(servers, run_id)["state"]["name"] == "Cancelled"
    child = find_run(servers, parent_flow_run_id={"any_": [run_id]})
    assert wait_for_end(servers, child["id"])["state"]["name"] == "Cancelled"


def test_team_training_killed_resumes_from_its_checkpoint(servers: Servers, home: Path) -> None:
    known = checkpoints(home)
    run_id = start(servers, seed=7, max_steps=40, save_steps=4)
    folder, training = training_half_way(home, known)
    training.kill()
    run = wait_for_end(servers, run_id)
    assert run["state"]["name"] == "Completed", run["state"]["message"]
    child = find_run(servers, parent_flow_run_id={"any_": [run_id]})
    assert child["run_count"] == 2
    assert child["name"] == run["name"] == f"sft-flow-demo {folder.name[:6]}", "kept when the training was resumed"
    assert json.loads((folder / "training.json").read_text())["resumed_from_step"] >= 4
    points = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    steps = [point["step"] for point in points if "loss" in point["values"]]
    assert steps == sorted(set(steps))


def test_team_set_up_leaves_no_process_after_ctrl_c(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deployments.up", "--output_dir", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout
    lines = iter(process.stdout)
    shown = next(line for line in lines if re.match(r"Try  +PREFECT_API_URL=http", line))
    assert "prefect deployment run sft-flow/demo" in shown
    next(line for line in lines if "started!" in line)
    started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) >= 4
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert not [child for child in psutil.wait_procs(started, timeout=20)[1] if child.status() != "zombie"]
