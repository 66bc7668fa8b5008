"""The whole team set-up on one machine, in the foreground: ``make up``."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from rich.console import Console

from deployments.deploy import NOTIFY, deploy
from flows.cli import set_environment
from flows.embedded import mlflow_server, prefect_server, running
from tasks.registry import tracking_uri
from tasks.store import VARIABLE as STORE
from training_core.config import RunConfig, config_from_command_line, read_settings

# A parent waits beside its training, so runs of the CPU pool are many and idle; a GPU takes one at a time.
WORKERS = {"cpu": 10, "gpu": 1}

console = Console(highlight=False)


@dataclass(frozen=True)
class Addresses:
    """Where the servers of a set-up answer."""

    prefect: str
    mlflow: str


def main() -> None:
    """Servers, pools, deployments and workers until Ctrl-C; then nothing of it is left but ``output_dir``."""
    config = read_settings(config_from_command_line(sys.argv[1:], "python -m deployments.up"))
    set_environment()
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell that starts jobs with & has the first ignored
        signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), team(config) as addresses:
        console.print(f"Prefect  {addresses.prefect}")
        console.print(f"MLflow   {addresses.mlflow}/#/experiments?workflowType=machine_learning")
        console.print(
            f"Try      PREFECT_API_URL={addresses.prefect}/api prefect deployment run sft-flow/demo --watch",
            soft_wrap=True,
        )
        console.print("Ctrl-C ends all of it.")
        signal.pause()


@contextlib.contextmanager
def team(config: RunConfig) -> Iterator[Addresses]:
    """Two servers, all deployments, and a worker for each pool, each in a folder of its own, sharing only URLs."""
    home = Path(config.output_dir).resolve()
    with contextlib.ExitStack() as stack:
        prefect = stack.enter_context(prefect_server(home / "prefect", for_workers=True))
        mlflow = stack.enter_context(mlflow_server(tracking_uri(config), artifacts=home / "mlartifacts"))
        api = f"{prefect.wait()}/api"
        store = (home / "store").as_uri()
        with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
            for outcome, what, name in deploy(client, "process", store, os.environ.get(NOTIFY)):
                console.print(f"{outcome:10} {what:11} {name}", markup=False, soft_wrap=True)
        facts = {"PREFECT_API_URL": api, "MLFLOW_TRACKING_URI": mlflow.wait(), STORE: store}
        for pool, limit in WORKERS.items():
            stack.enter_context(worker(pool, limit, home / pool, facts))
        yield Addresses(prefect.address, mlflow.address)


@contextlib.contextmanager
def worker(pool: str, limit: int, folder: Path, facts: dict[str, str]) -> Iterator[None]:
    """A worker that takes at most ``limit`` runs of a pool at a time and works in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["prefect", "worker", "start", "--pool", pool, "--type", "process", "--limit", str(limit)]
    with running(command, facts | {"PREFECT_HOME": str(folder / "prefect")}, folder):
        yield


if __name__ == "__main__":
    main()
