"""What happens when something dies: a real set-up, one fault after the other, and a table of what came of it.

``python -m benchmarks.faults [FAULT …]`` writes ``results/faults.json`` and the README's table; an hour for all.
"""

import contextlib
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console

from deployments.up import WORKERS, Servers, deploy_to, servers, worker
from flows.cli import set_environment
from flows.local_servers import prefect_server
from flows.readme import write_section

SETTINGS = {
    "max_steps": 40,
    "save_steps": 5,
    "logging_steps": 1,
    "gradient_accumulation_steps": 4,
    "max_eval_rows": 8,
    "eval_max_new_tokens": 16,
    "min_improvement": 0.9,  # nobody becomes champion, so that all faults meet the same evaluation
}
LONGEST_SECONDS = 600
RESULTS = Path(__file__).parent / "results" / "faults.json"

console = Console(highlight=False, soft_wrap=True)


@dataclass
class Team:
    """A set-up whose parts can be killed one by one and started again, and a run of the demo in it."""

    home: Path
    servers: Servers
    stack: contextlib.ExitStack
    workers: dict[str, psutil.Process] = field(default_factory=dict)
    run: str = ""

    def start_worker(self, pool: str) -> None:
        """Another worker of a pool."""
        process = self.stack.enter_context(worker(pool, self.home, self.servers))
        self.workers[pool] = psutil.Process(process.pid)

    def engine(self, pool: str) -> psutil.Process:
        """The process that runs a flow for the pool's worker."""
        below = self.workers[pool].children(recursive=True)
        return next(process for process in below if "prefect.engine" in process.cmdline())

    def kill_machine(self, pool: str) -> None:
        """A pool's worker and the flow it runs."""
        engine = self.engine(pool)
        self.workers[pool].kill()
        engine.kill()

    def api(self, path: str, **body: Any) -> Any:
        """What the Prefect server answers. Raises ``httpx.HTTPError``."""
        answer = httpx.post(f"{self.servers.prefect.address}/api/{path}", json=body, timeout=30)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def start_run(self, **settings: Any) -> None:
        """Start the demo."""
        name = f"{self.servers.prefect.address}/api/deployments/name/sft-flow/demo"
        deployment = httpx.get(name, timeout=30).json()["id"]
        run = self.api(f"deployments/{deployment}/create_flow_run", parameters=SETTINGS | settings)
        self.run = run["id"]

    def look(self) -> dict[str, dict[str, Any]]:
        """The run and its training by their flows' names; nothing while the server is away."""
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
    """SIGKILL of the GPU worker; its run lives on; another worker after 10 s."""
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


def keep_server_away(team: Team) -> None:
    """SIGKILL of the Prefect server; started again after 150 s, when every run has been silent for too long."""
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
    """SIGSTOP of GPU worker and training for 150 s, as of a machine that sleeps; another worker after 10 s."""
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


def keep_gpu_worker_away(team: Team) -> None:
    """SIGKILL of GPU worker and training; no worker ever comes back."""
    team.kill_machine("gpu")


FAULTS: dict[str, Callable[[Team], None]] = {
    fault.__name__: fault
    for fault in (
        *(kill_training, kill_gpu_worker, kill_gpu_machine, freeze_training, kill_parent, kill_cpu_machine),
        *(kill_server, keep_server_away, cancel, pause_pool, keep_gpu_worker_away),
    )
}


@contextlib.contextmanager
def fresh_team() -> Iterator[Team]:
    """Servers, deployments and workers of their own, in a folder that goes with them."""
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
    """Let one fault happen in the middle of a training, and follow the run to its end."""
    fault = FAULTS[name]
    patience = {"max_queue_hours": 0.03} if fault is keep_gpu_worker_away else {}
    with fresh_team() as team:
        team.start_run(**patience)
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
            "what": str(fault.__doc__),
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
    """Note every change until the run is over."""
    last: dict[str, tuple[str, int]] = {}
    while time.monotonic() - since < LONGEST_SECONDS:
        runs = team.look()
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
    """What is there in the end: each kind of thing once, or not at all."""
    summaries = [json.loads(path.read_text()) for path in team.home.glob("gpu/runs/*/training.json")]
    runs = team.look()
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
    """What came of each fault, as Markdown."""
    lines = [
        "| fault | known after, s | trains again after, s | steps lost | trained twice | end |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for name in (name for name in FAULTS if name in found):
        fault, changes = found[name], [Change(**change) for change in found[name]["changes"]]
        known = next((change.seconds for change in changes if change.state not in ("Running", "Completed")), None)
        again = next((change.seconds for change in changes if change.state == "Running" and change.run_count > 1), None)
        end = fault["end"]["sft-flow"]
        if name == "cancel":
            end += f"; the training's process is gone after {fault['first_training_process_gone']} s"
        lost = max(0, fault["steps_at_fault"] - (fault["resumed_from_step"] or fault["steps_at_fault"]))
        cells = ("—" if cell is None else str(cell) for cell in (known, again, lost, fault["points_twice"], end))
        lines.append(f"| {fault['what'].rstrip('.')} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure the faults named, or all, and keep what came of each."""
    set_environment()
    for name in sys.argv[1:] or FAULTS:
        console.print(f"{name}: {FAULTS[name].__doc__}")
        found = measure(name)
        known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        text = json.dumps(known | {name: found}, indent=1)
        RESULTS.write_text(text + "\n", encoding="utf-8")
        write_section("faults", faults_table(json.loads(text)))
        console.print({key: value for key, value in found.items() if key != "changes"})


if __name__ == "__main__":
    main()
