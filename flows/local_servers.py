"""Servers for one machine. They stop with the process that started them, also when that is killed by SIGKILL."""

import contextlib
import os
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from flows.terminal import complain
from tasks.databases import forget_deleted, require_intact, sqlite_damage
from training_core.child_processes import child_process
from training_core.config import SettingsError

START_TIMEOUT_SECONDS = 180

# Services for deployments and automations, which a server that runs for one command never has.
_DEPLOYMENT_SERVICES = (
    *("SCHEDULER", "LATE_RUNS", "PAUSE_EXPIRATIONS", "CANCELLATION_CLEANUP"),
    *("FOREMAN", "REPOSSESSOR", "TRIGGERS", "DB_VACUUM"),
)


_LOG = "server.log"
_RESTARTS = 5  # of a server that dies; one that cannot start is not worth more
_SECONDS_BETWEEN_STARTS = 1
_WAITING_CONNECTIONS = 2048  # uvicorn's own default


@dataclass(frozen=True)
class Server:
    """A started server; it answers at ``address`` once ``wait`` has returned."""

    process: subprocess.Popen[bytes]
    address: str
    health: str
    log: Path | None = None

    def wait(self) -> str:
        """Return the address once the server answers. Raises ``SettingsError`` when it died or takes too long."""
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                # trust_env: an HTTP proxy of the environment cannot reach this machine's loopback address.
                if httpx.get(f"{self.address}{self.health}", timeout=5, trust_env=False).is_success:
                    return self.address
            time.sleep(0.2)
        ended = f"the server at {self.address} did not start; exit code {self.process.poll()}"
        raise SettingsError([f"{ended}; {self._last_words()}"])

    def _last_words(self) -> str:
        text = self.log.read_text(encoding="utf-8", errors="replace").strip() if self.log else ""
        return (
            f"{text.splitlines()[-1]} (the end of {self.log})"
            if text
            else "it says no more; the same command tries again"
        )


@contextlib.contextmanager
def prefect_server(
    home: Path,
    preferred_port: int = 4200,
    *,
    database: str | None = None,
    for_workers: bool = False,
    login: str = "",
    log: Path | None = None,
) -> Iterator[Server]:
    """A Prefect server with its UI and its database: SQLite in ``home`` unless a URL is given. With a login, such as
    ``user:password``, it answers those who give that.

    Prefect's own temporary server keeps running, and keeps the database open, when its parent is killed; this one
    stops. With a ``log`` its output goes to that file.
    """
    home.mkdir(parents=True, exist_ok=True)
    _replace_damaged(home / "prefect.db")
    listener = listen(preferred_port)
    address = _address(listener)
    environment = {
        **_settings_of_another_server(),
        "PREFECT_HOME": str(home),
        "PREFECT_UI_API_URL": f"{address}/api",
        "PREFECT_UI_URL": address,  # for links in notifications
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_LOGGING_SERVER_LEVEL": "ERROR",
        "PREFECT_SERVER_SERVICES_EVENT_LOGGER_ENABLED": "false",
        **({"PREFECT_API_DATABASE_CONNECTION_URL": database} if database else {}),
        **({"PREFECT_SERVER_API_AUTH_STRING": login} if login else {}),
        **{f"PREFECT_SERVER_SERVICES_{name}_ENABLED": str(for_workers).lower() for name in _DEPLOYMENT_SERVICES},
    }
    command = ["uvicorn", "--factory", "flows.prefect_app:create_app", "--log-level", "error", "--fd", "0"]
    with contextlib.ExitStack() as opened:
        opened.enter_context(listener)
        output = opened.enter_context(log.open("wb")).fileno() if log else None
        process = opened.enter_context(child_process(command, environment, stdin=listener.fileno(), output=output))
        listener.close()  # here, so that nothing answers on its port when the server dies
        yield Server(process, address, "/api/health", log)


def _settings_of_another_server() -> dict[str, None]:
    """The environment's settings for a server: with them, this one would use the database or the login of a team's."""
    return {name: None for name in os.environ if name.startswith(("PREFECT_SERVER_", "PREFECT_API_DATABASE_"))}


def _replace_damaged(database: Path) -> None:
    """Rename a damaged database; the server makes a new one. Nothing but the pages of its UI is lost. Raises
    ``SettingsError`` when it cannot be opened, which may be no fault of its own."""
    if problem := sqlite_damage(database):
        kept = database.with_name(f"{database.name}.damaged-{time.time_ns()}")
        database.rename(kept)
        complain(f"{database}: {problem}; it is now {kept.name}, and earlier runs are not in Prefect's UI")
    require_intact(database)
    forget_deleted(database)


@contextlib.contextmanager
def lasting_prefect_server(home: Path) -> Iterator[Server]:
    """A Prefect server that is started again, at the same address, when something kills it; its log is in ``home``."""
    home.mkdir(parents=True, exist_ok=True)
    ended = threading.Event()
    with contextlib.ExitStack() as later, prefect_server(home, log=home / _LOG) as server:
        threading.Thread(target=_start_again, args=(home, server, later, ended), daemon=True).start()
        try:
            yield server
        finally:
            ended.set()


def _start_again(home: Path, server: Server, later: contextlib.ExitStack, ended: threading.Event) -> None:
    port = int(server.address.rpartition(":")[2])
    for _ in range(_RESTARTS):
        server.process.wait()
        if ended.is_set() or not home.is_dir():
            return
        kept = later.enter_context(contextlib.ExitStack())
        again = kept.enter_context(prefect_server(home, port, log=home / _LOG))
        if again.address == server.address and not ended.is_set():
            server = again
            continue
        kept.close()  # nobody asks a server at another address; and ``later`` may have been closed meanwhile
        ended.wait(_SECONDS_BETWEEN_STARTS)  # until the port is free


@contextlib.contextmanager
def mlflow_server(
    tracking_uri: str, artifacts: Path, preferred_port: int = 5000, *, login: str = ""
) -> Iterator[Server]:
    """An MLflow server with its UI; clients upload and download artifacts through it. ``login`` is as Prefect's."""
    listener = listen(preferred_port)
    address = _address(listener)
    environment = {
        "MLFLOW_BACKEND_STORE_URI": tracking_uri,  # not an argument: every user of the machine can read those
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **(_mlflow_login(login, artifacts.parent) if login else {}),
    }
    command = ["mlflow", "server", "--workers", "1", "--uvicorn-opts", "--fd 0"]
    command += ["--artifacts-destination", artifacts.as_uri(), *(["--app-name", "basic-auth"] if login else [])]
    with listener, child_process(command, environment, stdin=listener.fileno()) as process:
        listener.close()
        yield Server(process, address, "/health")


def _mlflow_login(login: str, folder: Path) -> dict[str, str]:
    """The environment of MLflow's own authentication with one administrator. MLflow takes a password only once, so its
    table of users is made anew at each start."""
    user, _, password = login.partition(":")
    settings, users = folder / "mlflow_login.ini", folder / "mlflow_login.db"
    users.unlink(missing_ok=True)
    settings.write_text(f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{users}\n", encoding="utf-8")
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_USERNAME": user,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(),
    }


def listen(preferred_port: int) -> socket.socket:
    """A socket on 127.0.0.1 that listens on the preferred port, or on any free one when that is in use.

    A server gets it as its standard input, which MLflow's command passes on to the uvicorn that it starts. The port is
    ours from the start, so no other server can answer in place of the one that is still starting.
    """
    for port in (preferred_port, 0):
        with contextlib.suppress(OSError):
            listener = socket.create_server(("127.0.0.1", port), backlog=_WAITING_CONNECTIONS)
            # Connections inherit it. asyncio does not set it, since uvicorn --fd takes the socket for a Unix socket.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return listener
    raise OSError("found no free port on 127.0.0.1")


def _address(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def free_port(preferred: int) -> int:
    """The preferred port where it is free, else any free one."""
    for port in (preferred, 0):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port is free once its server has ended
            listener.bind(("127.0.0.1", port))
            return int(listener.getsockname()[1])
    raise OSError("no port is free on 127.0.0.1")
