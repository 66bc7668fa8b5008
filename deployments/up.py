"""The whole team set-up on one machine, in the foreground: ``make up``."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from rich.console import Console

from deployments.deploy import NOTIFY, Outcome, deploy
from deployments.postgres import find_postgres, is_accessible, postgres
from flows.cli import set_environment
from flows.local_servers import Server, mlflow_server, prefect_server
from tasks.artifact_store import VARIABLE as STORE
from tasks.tracking import tracking_uri
from training_core.child_processes import child_process
from training_core.config import config_from_command_line, read_settings
from training_core.training.gpu_check import VISIBLE, find_driver

DATABASE = "PREFECT_API_DATABASE_CONNECTION_URL"

TRY = "prefect deployment run sft-flow/demo --watch"

# Concurrent runs of each pool's worker: on the CPU pool most runs only wait for a training; a GPU trains one at a time.
WORKERS = {"cpu": 10, "gpu": 1}

_SECONDS_TO_END = 45  # a training saves and uploads a checkpoint first; see ``save_when_interrupted``

console = Console(highlight=False)


@dataclass(frozen=True)
class Servers:
    """The servers of a set-up and the URL of its artifact store."""

    prefect: Server
    mlflow: Server
    database: str | None
    store: str

    def worker_environment(self) -> dict[str, str]:
        """The environment variables that a worker needs."""
        return {
            "PREFECT_API_URL": f"{self.prefect.address}/api",
            "MLFLOW_TRACKING_URI": self.mlflow.address,
            STORE: self.store,
            # On a machine without a GPU the GPU pool trains on the CPU, which has to be said.
            **({} if find_driver() else {VISIBLE: ""}),
        }


def main() -> None:
    """Run servers and workers until Ctrl-C; only ``output_dir`` is left then."""
    config = read_settings(config_from_command_line(sys.argv[1:], "python -m deployments.up"))
    set_environment()
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # this set-up starts its own server
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell that starts jobs with & has the first ignored
        signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), team(Path(config.output_dir).resolve()) as found:
        console.print(f"Prefect  {found.prefect.address}")
        console.print(f"MLflow   {found.mlflow.address}/#/experiments?workflowType=machine_learning")
        console.print(f"Try      PREFECT_API_URL={found.prefect.address}/api {TRY}", soft_wrap=True)
        console.print("Ctrl-C stops everything.")
        signal.pause()


@contextlib.contextmanager
def team(home: Path) -> Iterator[Servers]:
    """Start the servers, deploy everything, and start a worker for each pool."""
    with servers(home) as found, contextlib.ExitStack() as workers:
        for outcome, what, name in deploy_to(found):
            console.print(f"{outcome:10} {what:11} {name}", markup=False, soft_wrap=True)
        for pool in WORKERS:
            workers.enter_context(worker(pool, home, found))
        yield found


@contextlib.contextmanager
def servers(home: Path) -> Iterator[Servers]:
    """A Prefect and an MLflow server with their data in ``home``."""
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(prefect_database(home))
        prefect = stack.enter_context(prefect_server(home / "prefect", database=database, for_workers=True))
        tracked = tracking_uri(read_settings({"output_dir": str(home)}))
        mlflow = stack.enter_context(mlflow_server(tracked, artifacts=home / "mlartifacts"))
        prefect.wait()
        mlflow.wait()
        yield Servers(prefect, mlflow, database, (home / "store").as_uri())


@contextlib.contextmanager
def prefect_database(home: Path) -> Iterator[str | None]:
    """The URL of Prefect's database: that of the environment, else of a PostgreSQL started here; ``None``: SQLite."""
    programs = find_postgres()
    if os.environ.get(DATABASE):
        yield os.environ[DATABASE]
    elif programs and is_accessible(home):
        with postgres(programs, home / "postgres", ("prefect",)) as server:
            yield server.url("prefect", "asyncpg")
    else:
        console.print("PostgreSQL is not installed; using SQLite, which may lose events when it is busy")
        yield None


def deploy_to(found: Servers) -> Iterator[tuple[Outcome, str, str]]:
    """Deploy everything to the Prefect server."""
    with temporary_settings({PREFECT_API_URL: f"{found.prefect.address}/api"}), get_client(sync_client=True) as client:
        yield from deploy(client, "process", found.store, os.environ.get(NOTIFY))


@contextlib.contextmanager
def worker(pool: str, home: Path, found: Servers) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of a pool, in its own folder; workers share only the servers and the artifact store."""
    folder = home / pool
    folder.mkdir(parents=True, exist_ok=True)
    command = ["prefect", "worker", "start", "--pool", pool, "--type", "process", "--limit", str(WORKERS[pool])]
    environment = found.worker_environment() | {"PREFECT_HOME": str(folder / "prefect")}
    with child_process(command, environment, folder, seconds_to_end=_SECONDS_TO_END) as process:
        yield process


if __name__ == "__main__":
    main()
