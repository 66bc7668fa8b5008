"""Servers for one machine. They stop with the process that started them, also when that is killed by SIGKILL."""

import contextlib
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

START_TIMEOUT_SECONDS = 180

# Services for deployments and automations, which a server that runs for one command never has.
_SERVICES_WITHOUT_WORK = (
    *("SCHEDULER", "LATE_RUNS", "PAUSE_EXPIRATIONS", "CANCELLATION_CLEANUP"),
    *("FOREMAN", "REPOSSESSOR", "TRIGGERS", "DB_VACUUM"),
)


@dataclass(frozen=True)
class Server:
    """A started server; it answers at ``address`` once ``wait`` has returned."""

    process: subprocess.Popen[bytes]
    address: str
    health: str

    def wait(self) -> str:
        """Return the address once the server answers. Raises ``RuntimeError`` when it died or takes too long."""
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.address}{self.health}", timeout=5).is_success:
                    return self.address
            time.sleep(0.2)
        raise RuntimeError(f"the server at {self.address} did not start; exit code {self.process.poll()}")


@contextlib.contextmanager
def prefect_server(
    home: Path, preferred_port: int = 4200, *, database: str | None = None, for_workers: bool = False
) -> Iterator[Server]:
    """A Prefect server with its UI and its database: SQLite in ``home`` unless a URL is given.

    Prefect's own temporary server keeps running, and keeps the database open, when its parent is killed; this one
    stops.
    """
    home.mkdir(parents=True, exist_ok=True)
    port = free_port(preferred_port)
    environment = {
        "PREFECT_HOME": str(home),
        "PREFECT_UI_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_UI_URL": f"http://127.0.0.1:{port}",  # for links in notifications
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_LOGGING_SERVER_LEVEL": "ERROR",
        "PREFECT_SERVER_SERVICES_EVENT_LOGGER_ENABLED": "false",
        **({"PREFECT_API_DATABASE_CONNECTION_URL": database} if database else {}),
        **{f"PREFECT_SERVER_SERVICES_{name}_ENABLED": str(for_workers).lower() for name in _SERVICES_WITHOUT_WORK},
    }
    command = ["uvicorn", "--factory", "prefect.server.api.server:create_app", "--log-level", "error"]
    with running([*command, "--host", "127.0.0.1", "--port", str(port)], environment) as process:
        yield Server(process, f"http://127.0.0.1:{port}", "/api/health")


@contextlib.contextmanager
def mlflow_server(tracking_uri: str, artifacts: Path, preferred_port: int = 5000) -> Iterator[Server]:
    """An MLflow server with its UI; clients upload and download artifacts through it."""
    port = free_port(preferred_port)
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = ["mlflow", "server", "--backend-store-uri", tracking_uri, "--workers", "1"]
    command += ["--artifacts-destination", artifacts.as_uri()]
    with running([*command, "--host", "127.0.0.1", "--port", str(port)], environment) as process:
        yield Server(process, f"http://127.0.0.1:{port}", "/health")


def free_port(preferred: int) -> int:
    """The preferred port where it is free, else any free one."""
    for port in (preferred, 0):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # a port that was closed a moment ago is free
            listener.bind(("127.0.0.1", port))
            return int(listener.getsockname()[1])
    raise OSError("no port is free on 127.0.0.1")


@contextlib.contextmanager
def running(
    arguments: list[str], environment: dict[str, str], folder: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``python -m`` with these arguments until the body ends or this process dies."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.local_servers", str(os.getpid()), *arguments],
        env=os.environ | environment,
        cwd=folder,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Run a Python module as ``python -m module arguments`` would, for as long as the parent process lives."""
    parent, module, *arguments = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts jobs with & has it ignored
    threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
