"""A run of the team: two workers that share nothing but URLs, and nothing left behind in the end."""

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


def run_to_its_end(servers: Servers, **settings: Any) -> dict[str, Any]:
    api = f"{servers.prefect.address}/api"
    demo = httpx.get(f"{api}/deployments/name/sft-flow/demo", timeout=30).json()["id"]
    wanted = {"parameters": TINY | settings}
    run = httpx.post(f"{api}/deployments/{demo}/create_flow_run", json=wanted, timeout=30).json()
    while run["state"]["type"] not in ("COMPLETED", "FAILED", "CANCELLED"):
        time.sleep(1)
        run = httpx.get(f"{api}/flow_runs/{run['id']}", timeout=30).json()
    return run


def adapters_of(folders: Iterable[Path], seed: int) -> list[Path]:
    """Those that a run with this seed has made; the team is also that of other tests."""
    configs = [folder / "run_config.json" for folder in folders]
    return [path.parent for path in configs if path.exists() and json.loads(path.read_text())["seed"] == seed]


def test_a_run_goes_through_two_workers_that_share_only_urls_and_a_second_has_nothing_to_do(
    servers: Servers, home: Path
) -> None:
    run = run_to_its_end(servers, seed=5)
    assert run["state"]["name"] == "Completed", run["state"]["message"]
    cpu, gpu = home / "cpu" / "runs", home / "gpu" / "runs"
    assert list(cpu.glob("datasets/*/train.arrow"))
    assert not list(gpu.glob("datasets/*"))
    (adapter,) = adapters_of(gpu.glob("*/adapter"), seed=5)
    (fetched,) = adapters_of(cpu.glob("fetched/*"), seed=5)
    assert not list(cpu.glob("*/adapter"))
    weights = "adapter_model.safetensors"
    assert (fetched / weights).read_bytes() == (adapter / weights).read_bytes()
    assert list(gpu.glob("fetched/*/train.arrow"))
    assert list((home / "store").glob("runs/*/checkpoint-8/manifest.json"))

    again = run_to_its_end(servers, seed=5)
    assert again["state"]["name"] == "NothingNew", again["state"]["message"]
    assert again["total_run_time"] < run["total_run_time"]


def test_ctrl_c_leaves_nothing_running(tmp_path: Path) -> None:
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
