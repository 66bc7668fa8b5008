"""Injects faults into a real team set-up, one at a time, and records how each run ended.

``python -m benchmarks.faults [FAULT …]`` writes ``results/faults.json`` and the table of docs/reliability.md. All
faults take an hour. ``--render`` writes the table from the last results.
"""

import contextlib
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console

from deployments.up import WORKERS, Servers, deploy_to, servers, worker
from flows.cli import set_environment
from flows.doc_sections import DOCS, write_section
from flows.local_servers import prefect_server

SETTINGS = {
    "max_steps": 40,
    "save_steps": 5,
    "logging_steps": 1,
    "gradient_accumulation_steps": 4,
    "max_eval_rows": 8,
    "eval_max_new_tokens": 16,
    "min_improvement": 0.9,  # no run changes the champion, so that all runs have the same evaluation
}
LONGEST_SECONDS = 600
RESULTS = Path(__file__).parent / "results" / "faults.json"
PAGE, SECTION = DOCS / "reliability.md", "faults"

console = Console(highlight=False, soft_wrap=True)


@dataclass
class Team:
    """A team set-up whose parts can be killed and started again one by one, and a run of the demo in it."""

    home: Path
    servers: Servers
    stack: contextlib.ExitStack
    workers: dict[str, psutil.Process] = field(default_factory=dict)
    run: str = ""

    def start_worker(self, pool: str) -> None:
        """Start another worker of a pool."""
        process = self.stack.enter_context(worker(pool, self.home, self.servers))
        self.workers[pool] = psutil.Process(process.pid)

    def engine(self, pool: str) -> psutil.Process:
        """The process that runs a flow for the pool's worker."""
        below = self.workers[pool].children(recursive=True)
        return next(process for process in below if "prefect.engine" in process.cmdline())

    def kill_machine(self, pool: str) -> None:
        """Kill a pool's worker and the flow that it runs."""
        engine = self.engine(pool)
        self.workers[pool].kill()
        engine.kill()

    def api(self, path: str, **body: Any) -> Any:
        """The Prefect server's response to a POST. Raises ``httpx.HTTPError``."""
        answer = httpx.post(f"{self.servers.prefect.address}/api/{path}", json=body, timeout=30)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def start_run(self, **settings: Any) -> None:
        """Start the demo."""
        name = f"{self.servers.prefect.address}/api/deployments/name/sft-flow/demo"
        deployment = httpx.get(name, timeout=30).json()["id"]
        run = self.api(f"deployments/{deployment}/create_flow_run", parameters=SETTINGS | settings)
        self.run = run["id"]

    def poll(self) -> dict[str, dict[str, Any]]:
        """The run and its training by flow name; empty while the server does not answer."""
        own = {"any_": [self.run]}
        try:
            found = self.api("flow_runs/filter", flow_runs={"id": own})
            found += self.api("flow_runs/filter", flow_runs={"parent_flow_run_id": own})
        except httpx.HTTPError:
            return {}
        return {"sft-flow" if run["id"] == self.run else "train-flow": run for run in found}

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints on the machine that trains."""
        return sorted(self.home.glob("gpu/runs/*/checkpoints/checkpoint-*/manifest.json"))


@dataclass(frozen=True)
class Change:
    """A state of a flow's run, seconds after the fault."""

    seconds: float
    flow: str
    state: str
    run_count: int


def kill_training(team: Team) -> None:
    """SIGKILL of the process that trains."""
    team.engine("gpu").kill()


def kill_gpu_worker(team: Team) -> None:
    """SIGKILL of the GPU worker only; its run keeps training; another worker after 10 s."""
    team.workers["gpu"].kill()
    time.sleep(10)
    team.start_worker("gpu")


def kill_gpu_machine(team: Team) -> None:
    """SIGKILL of GPU worker and training; another worker after 10 s."""
    team.kill_machine("gpu")
    time.sleep(10)
    team.start_worker("gpu")


def kill_cpu_machine(team: Team) -> None:
    """SIGKILL of CPU worker and parent flow; another worker after 10 s."""
    team.kill_machine("cpu")
    time.sleep(10)
    team.start_worker("cpu")


def kill_parent(team: Team) -> None:
    """SIGKILL of the parent flow's process."""
    team.engine("cpu").kill()


def kill_server(team: Team) -> None:
    """SIGKILL of the Prefect server; started again after 30 s."""
    _restart_server(team, 30)


def kill_server_for_long(team: Team) -> None:
    """SIGKILL of the Prefect server; started again after 150 s, when all heartbeats are overdue."""
    _restart_server(team, 150)


def _restart_server(team: Team, after: int) -> None:
    team.servers.prefect.process.kill()
    time.sleep(after)
    port = int(team.servers.prefect.address.rpartition(":")[2])
    again = prefect_server(team.home / "prefect", port, database=team.servers.database, for_workers=True)
    server = team.stack.enter_context(again)
    server.wait()
    team.servers = replace(team.servers, prefect=server)


def freeze_training(team: Team) -> None:
    """SIGSTOP of GPU worker and training for 150 s, like a machine that sleeps; another worker after 10 s."""
    engine, frozen = team.engine("gpu"), team.workers["gpu"]
    for process in (frozen, engine):
        process.suspend()
    time.sleep(10)
    team.start_worker("gpu")
    time.sleep(140)
    for process in (frozen, engine):
        process.resume()


def cancel(team: Team) -> None:
    """Cancelled in the UI."""
    team.api(f"flow_runs/{team.run}/set_state", state={"type": "CANCELLING", "name": "Cancelling"})


def pause_pool(team: Team) -> None:
    """The GPU pool paused for 60 s while its training runs."""
    pool = f"{team.servers.prefect.address}/api/work_pools/gpu"
    httpx.patch(pool, json={"is_paused": True}, timeout=30).raise_for_status()
    time.sleep(60)
    httpx.patch(pool, json={"is_paused": False}, timeout=30).raise_for_status()


def lose_gpu_machine(team: Team) -> None:
    """SIGKILL of GPU worker and training; no other worker is started."""
    team.kill_machine("gpu")


FAULTS: dict[str, Callable[[Team], None]] = {
    fault.__name__: fault
    for fault in (
        *(kill_training, kill_gpu_worker, kill_gpu_machine, freeze_training, kill_parent, kill_cpu_machine),
        *(kill_server, kill_server_for_long, cancel, pause_pool, lose_gpu_machine),
    )
}


@contextlib.contextmanager
def fresh_team() -> Iterator[Team]:
    """New servers, deployments and workers, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        home = Path(folder)
        home.chmod(0o755)  # PostgreSQL runs as another user when this process is root
        found = stack.enter_context(servers(home))
        for _ in deploy_to(found):
            pass
        team = Team(home, found, stack)
        for pool in WORKERS:
            team.start_worker(pool)
        yield team


def measure(name: str) -> dict[str, Any]:
    """Inject one fault in the middle of a training, and follow the run to its end."""
    fault = FAULTS[name]
    queue_limit = {"max_queue_hours": 0.03} if fault is lose_gpu_machine else {}
    with fresh_team() as team:
        team.start_run(**queue_limit)
        _wait_for(lambda: len(team.checkpoints()) >= 2)
        done = _last_step(team)
        happened = time.monotonic()
        changes: list[Change] = []
        follower = threading.Thread(target=_follow, args=(team, happened, changes))
        follower.start()
        training = team.engine("gpu")
        fault(team)
        gone = None
        while follower.is_alive():
            if gone is None and not (training.is_running() and training.status() != psutil.STATUS_ZOMBIE):
                gone = round(time.monotonic() - happened, 1)
            follower.join(0.5)
        return {
            "fault": name,
            "date": str(date.today()),
            "prefect": version("prefect"),
            "first_training_process_gone": gone,
            "steps_at_fault": done,
            **_outcome(team),
            "changes": [asdict(change) for change in changes],
        }


def _wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONGEST_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _last_step(team: Team) -> int:
    journals = list(team.home.glob("gpu/runs/*/journal.jsonl"))
    points = [json.loads(line) for journal in journals for line in journal.read_text().splitlines()]
    return max(int(point["step"]) for point in points)


def _follow(team: Team, since: float, changes: list[Change]) -> None:
    """Record every state change until the run ends."""
    last: dict[str, tuple[str, int]] = {}
    while time.monotonic() - since < LONGEST_SECONDS:
        runs = team.poll()
        for flow, run in runs.items():
            now = (str(run["state"]["name"]), int(run["run_count"]))
            if last.get(flow) != now:
                last[flow] = now
                changes.append(Change(round(time.monotonic() - since, 1), flow, *now))
                console.print(f"  {changes[-1]}")
        if runs and runs["sft-flow"]["state"]["type"] in ("COMPLETED", "FAILED", "CANCELLED"):
            return
        time.sleep(0.5)


def _outcome(team: Team) -> dict[str, Any]:
    """How the run ended, and how many trainings, points of the curve and registered versions there are."""
    summaries = [json.loads(path.read_text()) for path in team.home.glob("gpu/runs/*/training.json")]
    runs = team.poll()
    journals = list(team.home.glob("gpu/runs/*/journal.jsonl"))
    points = [json.loads(line) for path in journals for line in path.read_text().splitlines()]
    steps = [point["step"] for point in points if "loss" in point["values"]]
    versions = httpx.get(f"{team.servers.mlflow.address}/api/2.0/mlflow/model-versions/search", timeout=30).json()
    return {
        "end": {flow: run["state"]["name"] for flow, run in runs.items()},
        "message": runs["sft-flow"]["state"].get("message"),
        "resumed_from_step": summaries[0]["resumed_from_step"] if summaries else None,
        "trainings": len(summaries),
        "points": len(steps),
        "points_twice": len(steps) - len(set(steps)),
        "versions": len(versions.get("model_versions", [])),
    }


def faults_table(found: dict[str, dict[str, Any]]) -> str:
    """The outcome of each fault, as Markdown, and when it was measured."""
    lines = [
        "| fault | detected after, s | training resumed after, s | steps lost | steps trained twice | end state |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for name in (name for name in FAULTS if name in found):
        fault, changes = found[name], [Change(**change) for change in found[name]["changes"]]
        known = next((change.seconds for change in changes if change.state not in ("Running", "Completed")), None)
        again = next((change.seconds for change in changes if change.state == "Running" and change.run_count > 1), None)
        end = fault["end"]["sft-flow"]
        if name == "cancel":
            end += f"; the training process ended after {fault['first_training_process_gone']} s"
        lost = max(0, fault["steps_at_fault"] - (fault["resumed_from_step"] or fault["steps_at_fault"]))
        cells = ("—" if cell is None else str(cell) for cell in (known, again, lost, fault["points_twice"], end))
        lines.append(f"| {str(FAULTS[name].__doc__).rstrip('.')} | {' | '.join(cells)} |")
    measured = sorted({f"{fault['date']} with Prefect {fault['prefect']}" for fault in found.values()})
    return "\n".join([*lines, "", f"Measured on {', '.join(measured)}."]) + "\n"


def main() -> None:
    """Measure the faults named, or all, and record each outcome."""
    if sys.argv[1:] == ["--render"]:
        write_section(PAGE, SECTION, faults_table(json.loads(RESULTS.read_text(encoding="utf-8"))))
        return
    set_environment()
    for name in sys.argv[1:] or FAULTS:
        console.print(f"{name}: {FAULTS[name].__doc__}")
        found = measure(name)
        known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        text = json.dumps(known | {name: found}, indent=1)
        RESULTS.write_text(text + "\n", encoding="utf-8")
        write_section(PAGE, SECTION, faults_table(json.loads(text)))
        console.print({key: value for key, value in found.items() if key != "changes"})


if __name__ == "__main__":
    main()
