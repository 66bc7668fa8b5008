"""Servers for one machine: started for a command, and gone with it however the command ends, SIGKILL included."""

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from training_core.child_processes import child_process

START_TIMEOUT_SECONDS = 180

# They serve deployments and automations, which a server that goes with its command never has.
_SERVICES_WITHOUT_WORK = (
    *("SCHEDULER", "LATE_RUNS", "PAUSE_EXPIRATIONS", "CANCELLATION_CLEANUP"),
    *("FOREMAN", "REPOSSESSOR", "TRIGGERS", "DB_VACUUM"),
)


@dataclass(frozen=True)
class Server:
    """A server that was started; it answers at ``address`` once ``wait`` has returned."""

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

    Prefect's own temporary server outlives a killed parent and goes on holding the database; this one does not.
    """
    home.mkdir(parents=True, exist_ok=True)
    port = free_port(preferred_port)
    environment = {
        "PREFECT_HOME": str(home),
        "PREFECT_UI_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_UI_URL": f"http://127.0.0.1:{port}",  # stands in what it sends to people
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_LOGGING_SERVER_LEVEL": "ERROR",
        "PREFECT_SERVER_SERVICES_EVENT_LOGGER_ENABLED": "false",
        **({"PREFECT_API_DATABASE_CONNECTION_URL": database} if database else {}),
        **{f"PREFECT_SERVER_SERVICES_{name}_ENABLED": str(for_workers).lower() for name in _SERVICES_WITHOUT_WORK},
    }
    command = ["uvicorn", "--factory", "prefect.server.api.server:create_app", "--log-level", "error"]
    with child_process([*command, "--host", "127.0.0.1", "--port", str(port)], environment) as process:
        yield Server(process, f"http://127.0.0.1:{port}", "/api/health")


@contextlib.contextmanager
def mlflow_server(tracking_uri: str, artifacts: Path, preferred_port: int = 5000) -> Iterator[Server]:
    """An MLflow server with its UI over a store on this machine; clients reach artifacts through it."""
    port = free_port(preferred_port)
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = ["mlflow", "server", "--backend-store-uri", tracking_uri, "--workers", "1"]
    command += ["--artifacts-destination", artifacts.as_uri()]
    with child_process([*command, "--host", "127.0.0.1", "--port", str(port)], environment) as process:
        yield Server(process, f"http://127.0.0.1:{port}", "/health")


def free_port(preferred: int) -> int:
    """The preferred port where it is free, else any free one."""
    for port in (preferred, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that has just ended is no hindrance
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise OSError("no port is free on 127.0.0.1")
