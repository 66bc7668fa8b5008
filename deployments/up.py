"""The whole team set-up on one machine, in the foreground: ``make up``."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from deployments.deploy import NOTIFY, Outcome, deploy
from deployments.postgres import find_postgres, is_accessible, postgres
from deployments.topology import JANITOR_QUEUE
from flows.cli import set_environment
from flows.local_servers import Server, mlflow_server, prefect_server
from flows.terminal import complain, print_line
from tasks.artifact_store import VARIABLE as STORE
from tasks.tracking import tracking_uri
from training_core.child_processes import child_process
from training_core.config import SettingsError, config_from_command_line, read_settings
from training_core.training.gpu_check import VISIBLE, find_driver

DATABASE = "PREFECT_API_DATABASE_CONNECTION_URL"
LOGIN = "SFT_FLOW_LOGIN"
SHORTEST_PASSWORD = 12  # MLflow takes no shorter one

TRY = "prefect deployment run sft-flow/demo --watch"


class WorkerKind(NamedTuple):
    """A worker's pool, how many runs it has at once, and the queue that it takes them from; empty: from all."""

    pool: str
    limit: int
    queue: str = ""


# On the CPU pool most runs only wait for a training, and may be as many as a worker takes: the janitor has its own.
WORKERS = {
    "cpu": WorkerKind("cpu", 10),
    "gpu": WorkerKind("gpu", 1),  # trains one at a time
    "janitor": WorkerKind("cpu", 1, JANITOR_QUEUE),
}

_SECONDS_TO_END = 45  # a training saves and uploads a checkpoint first; see ``save_when_interrupted``


@dataclass(frozen=True)
class Servers:
    """The servers of a set-up and the URL of its artifact store."""

    prefect: Server
    mlflow: Server
    database: str | None
    store: str
    login: str = ""

    def worker_environment(self) -> dict[str, str]:
        """The environment variables that a worker needs."""
        return {
            "PREFECT_API_URL": f"{self.prefect.address}/api",
            "MLFLOW_TRACKING_URI": self.mlflow.address,
            STORE: self.store,
            # On a machine without a GPU the GPU pool trains on the CPU, which has to be said.
            **({} if find_driver() else {VISIBLE: ""}),
            **(self._login() if self.login else {}),
        }

    def _login(self) -> dict[str, str]:
        user, _, password = self.login.partition(":")
        mlflow = {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password}
        return {"PREFECT_API_AUTH_STRING": self.login, **mlflow}


def main() -> None:
    """Run servers and workers until Ctrl-C; only ``output_dir`` is left then."""
    try:
        config = read_settings(config_from_command_line(sys.argv[1:], "python -m deployments.up"))
        login = read_login()
    except SettingsError as error:
        complain(str(error))
        sys.exit(2)
    set_environment()
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # this set-up starts its own server
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell that starts jobs with & has the first ignored
        signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), team(Path(config.output_dir).resolve(), login) as found:
        print_line(f"Prefect  {found.prefect.address}")
        print_line(f"MLflow   {found.mlflow.address}/#/experiments?workflowType=machine_learning")
        given = f"PREFECT_API_AUTH_STRING=${LOGIN} " if login else ""  # its name: what is printed may be kept
        print_line(f"Try      PREFECT_API_URL={found.prefect.address}/api {given}{TRY}")
        print_line("Ctrl-C stops everything.")
        signal.pause()


def read_login() -> str:
    """User and password for both servers, as ``user:password`` from ``SFT_FLOW_LOGIN``; empty: they ask for none."""
    login = os.environ.get(LOGIN, "")
    user, _, password = login.partition(":")
    if login and not (user and len(password) >= SHORTEST_PASSWORD):
        what = f"expected USER:PASSWORD with at least {SHORTEST_PASSWORD} characters after the colon"
        raise SettingsError([f"{LOGIN}: {what}, got another text"])
    return login


@contextlib.contextmanager
def team(home: Path, login: str = "") -> Iterator[Servers]:
    """Start the servers, deploy everything, and start a worker for each pool."""
    with servers(home, login) as found, contextlib.ExitStack() as workers:
        for outcome, what, name in deploy_to(found):
            print_line(f"{outcome:10} {what:11} {name}")
        for name in WORKERS:
            workers.enter_context(worker(name, home, found))
        yield found


@contextlib.contextmanager
def servers(home: Path, login: str = "") -> Iterator[Servers]:
    """A Prefect and an MLflow server with their data in ``home``; with a login, ``user:password``, both ask for it."""
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(prefect_database(home))
        prefect = stack.enter_context(
            prefect_server(home / "prefect", database=database, for_workers=True, login=login)
        )
        tracked = tracking_uri(read_settings({"output_dir": str(home)}))
        mlflow = stack.enter_context(mlflow_server(tracked, artifacts=home / "mlartifacts", login=login))
        prefect.wait()
        mlflow.wait()
        yield Servers(prefect, mlflow, database, (home / "store").as_uri(), login)


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
        print_line("PostgreSQL is not installed; using SQLite, which may lose events when it is busy")
        yield None


def deploy_to(found: Servers) -> Iterator[tuple[Outcome, str, str]]:
    """Deploy everything to the Prefect server."""
    settings = {PREFECT_API_URL: f"{found.prefect.address}/api", PREFECT_API_AUTH_STRING: found.login or None}
    with temporary_settings(settings), get_client(sync_client=True) as client:
        yield from deploy(client, "process", found.store, os.environ.get(NOTIFY))


@contextlib.contextmanager
def worker(name: str, home: Path, found: Servers) -> Iterator[subprocess.Popen[bytes]]:
    """A worker, in its own folder; workers share only the servers and the artifact store."""
    folder, kind = home / name, WORKERS[name]
    folder.mkdir(parents=True, exist_ok=True)
    command = ["prefect", "worker", "start", "--pool", kind.pool, "--type", "process", "--limit", str(kind.limit)]
    command += ["--work-queue", kind.queue] if kind.queue else []
    environment = found.worker_environment() | {"PREFECT_HOME": str(folder / "prefect")}
    with child_process(command, environment, folder, seconds_to_end=_SECONDS_TO_END) as process:
        yield process


if __name__ == "__main__":
    main()
