"""Servers of one machine: only the server that was started is used, and never through an HTTP proxy."""

import asyncio
import contextlib
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psutil
import pytest

from flows import cli, local_servers
from flows.cli import set_environment
from flows.local_servers import Server, lasting_prefect_server, listen, mlflow_server, prefect_server
from flows.prefect_app import starting_alone
from training_core.config import SettingsError

DEAD_PROXY = "http://127.0.0.1:9"  # no server listens on the discard port
PROXIES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


class OtherServer(BaseHTTPRequestHandler):
    """Answers every request as a healthy server would."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output short."""


@pytest.fixture
def other_port() -> Iterator[int]:
    """The port of a server that we did not start."""
    with ThreadingHTTPServer(("127.0.0.1", 0), OtherServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def dead_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.setenv(name, DEAD_PROXY)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def test_port_is_taken_before_its_server_answers() -> None:
    with listen(0) as first, listen(first.getsockname()[1]) as second:
        assert first.getsockname() != second.getsockname()
        with pytest.raises(OSError, match="in use"):
            socket.create_server(first.getsockname())


def test_port_sends_small_answers_without_delay() -> None:
    """Without this option each answer of uvicorn waits 40 ms for an acknowledgement."""
    with listen(0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_server_on_another_ones_port_gets_its_own(other_port: int) -> None:
    with listen(other_port) as listener:
        assert listener.getsockname()[1] != other_port


def test_server_that_dies_is_not_mistaken_for_another(other_port: int) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        with pytest.raises(SettingsError, match="did not start; exit code 0"):
            Server(process, f"http://127.0.0.1:{other_port}", "/health").wait()


def test_server_that_dies_says_why(tmp_path: Path) -> None:
    (log := tmp_path / "server.log").write_text("starting\nno such revision\n\n")
    with subprocess.Popen([sys.executable, "-c", "exit(3)"]) as process:
        process.wait()
        with pytest.raises(SettingsError, match=f"exit code 3; no such revision .the end of {log}"):
            Server(process, "http://127.0.0.1:9", "/health", log).wait()


@pytest.mark.parametrize("damage", ["cut", "text", "folder"])
def test_damaged_database_of_prefect_is_kept_and_a_new_one_made(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    database = tmp_path / "prefect.db"
    database.mkdir() if damage == "folder" else database.write_bytes(
        b"SQLite format 3\0"[: -3 if damage == "cut" else 9]
    )
    database.with_name("prefect.db-wal").touch()
    local_servers._replace_damaged(database)
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith("prefect.db.damaged-")
    assert "earlier runs are not in Prefect's UI" in capsys.readouterr().err


def test_database_of_prefect_that_cannot_be_opened_is_left_in_its_place(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(database := tmp_path / "prefect.db")) as opened:
        opened.execute("PRAGMA journal_mode=WAL")
    (folder := database.with_name("prefect.db-wal")).mkdir()
    with pytest.raises(SettingsError, match=r"prefect\.db': it cannot be opened"):
        local_servers._replace_damaged(database)
    assert sorted(tmp_path.iterdir()) == [database, folder]


def test_proxy_is_bypassed_by_health_checks(other_port: int, dead_proxy: None) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert Server(process, f"http://127.0.0.1:{other_port}", "/health").wait()


def test_proxy_is_bypassed_by_clients_of_local_servers(
    other_port: int, dead_proxy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ) | {"no_proxy": "example.org"})
    set_environment()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "example.org,127.0.0.1,localhost"
    set_environment()
    assert os.environ["no_proxy"] == "example.org,127.0.0.1,localhost", "said once, however often it is set"
    assert httpx.get(f"http://127.0.0.1:{other_port}").is_success


def test_empty_api_url_counts_as_unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def fake_server(home: Path) -> Iterator[Server]:
        yield Server(subprocess.Popen([sys.executable, "-c", ""]), "http://127.0.0.1:1", "/health")

    monkeypatch.setattr(cli, "lasting_prefect_server", fake_server)
    monkeypatch.setenv("PREFECT_API_URL", "")
    monkeypatch.setenv("PREFECT_HOME", "")
    with cli.prefect_api(tmp_path):
        assert os.environ["PREFECT_API_URL"] == "http://127.0.0.1:1/api"


def test_settings_of_another_server_do_not_reach_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would write into a team's database, or ask this process for a login that it does not have."""
    theirs = {
        "PREFECT_API_DATABASE_CONNECTION_URL": "postgresql+asyncpg://team@127.0.0.1:9/prefect",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql+asyncpg://team@127.0.0.1:9/prefect",
        "PREFECT_SERVER_API_AUTH_STRING": "me:password",
        "PREFECT_SERVER_API_BASE_PATH": "/team",
    }
    for name, value in theirs.items():
        monkeypatch.setenv(name, value)
    with prefect_server(tmp_path, 0) as server:
        reached = psutil.Process(server.process.pid).environ()
    assert reached["PREFECT_HOME"] == str(tmp_path)
    assert not theirs.keys() & reached.keys()


@pytest.mark.slow
@pytest.mark.usefixtures("dead_proxy")
def test_servers_started_together_are_not_mixed_up(tmp_path: Path, other_port: int) -> None:
    store, artifacts = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "artifacts"
    with prefect_server(tmp_path / "a", other_port) as first, prefect_server(tmp_path / "b", other_port) as second:
        addresses = {first.wait(), second.wait(), f"http://127.0.0.1:{other_port}"}
        assert len(addresses) == 3
        for server, home in ((first, "a"), (second, "b")):
            name = {"name": home}
            httpx.post(f"{server.address}/api/flows/", json=name, trust_env=False, timeout=30).raise_for_status()
        found = httpx.post(f"{first.address}/api/flows/filter", json={}, trust_env=False, timeout=30).json()
        assert [flow["name"] for flow in found] == ["a"]
    with mlflow_server(store, artifacts, other_port) as server:
        assert httpx.get(f"{server.wait()}/version", trust_env=False, timeout=30).text


def test_servers_of_one_home_start_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    starting: list[int] = []

    @contextlib.asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        starting.append(1)
        assert len(starting) == 1
        await asyncio.sleep(0.2)
        assert len(starting) == 1
        starting.clear()
        yield

    async def start() -> None:
        async with starting_alone(lifespan)(None):
            await both.wait()

    async def start_two() -> None:
        await asyncio.gather(start(), start())

    both = asyncio.Barrier(2)  # none ends before both have started
    asyncio.run(start_two())


@pytest.mark.slow
def test_servers_of_a_new_home_both_answer(tmp_path: Path) -> None:
    with prefect_server(tmp_path) as first, prefect_server(tmp_path) as second:
        for server in (first, second):
            flows = httpx.post(f"{server.wait()}/api/flows/filter", json={}, trust_env=False, timeout=30)
            assert flows.json() == []
            assert server.process.poll() is None


def test_addresses_of_databases_are_in_no_process_list(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/secret.db"
    with mlflow_server(store, tmp_path / "artifacts", preferred_port=0) as server:
        server.wait()
        started = psutil.Process(server.process.pid)
        commands = [" ".join(one.cmdline()) for one in (started, *started.children(recursive=True))]
        assert len(commands) >= 2
        assert not [command for command in commands if "secret.db" in command]
    assert (tmp_path / "secret.db").is_file(), "it is used all the same"


@pytest.mark.parametrize("start", ["prefect", "mlflow"])
def test_servers_listen_on_this_machine_only(tmp_path: Path, start: str) -> None:
    starts = {"prefect": (prefect_server, tmp_path), "mlflow": (mlflow_server, f"sqlite:///{tmp_path}/a", tmp_path)}
    run_server, *arguments = starts[start]
    with run_server(*arguments, 0) as server:
        server.wait()
        family = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
        listening = {found.laddr.ip for one in family for found in one.net_connections() if found.status == "LISTEN"}
    assert listening == {"127.0.0.1"}


@pytest.mark.slow
def test_server_that_is_killed_is_started_again(tmp_path: Path) -> None:
    def answers() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{server.address}/api/health", trust_env=False, timeout=30).is_success
        return False

    with lasting_prefect_server(tmp_path) as server:
        server.wait()
        server.process.kill()
        server.process.wait()
        deadline = time.monotonic() + 300
        while not answers():
            assert time.monotonic() < deadline, (tmp_path / "server.log").read_text()
            time.sleep(0.2)
    assert not answers(), "it ends with the process that started it"


@pytest.mark.parametrize("what", ["its port is taken", "its time is over"])
def test_server_that_nobody_would_ask_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """The address is in the environment of what runs: a server elsewhere, or after the end, is of no use."""
    ended, left = threading.Event(), list[Server]()

    @contextlib.contextmanager
    def start(home: Path, port: int, log: Path) -> Iterator[Server]:
        server = Server(subprocess.Popen([sys.executable, "-c", ""]), f"http://127.0.0.1:{port + ('port' in what)}", "")
        left.append(server)
        if "time" in what:
            ended.set()
        yield server
        left.remove(server)

    monkeypatch.setattr(local_servers, "prefect_server", start)
    monkeypatch.setattr(local_servers, "_SECONDS_BETWEEN_STARTS", 0)
    first = Server(subprocess.Popen([sys.executable, "-c", ""]), "http://127.0.0.1:4200", "")
    with contextlib.ExitStack() as later:
        local_servers._start_again(tmp_path, first, later, ended)
        assert not left


def test_log_of_a_deleted_database_is_not_read_into_a_new_one(tmp_path: Path) -> None:
    """SQLite would: what a killed server left unwritten is in a file of its own."""
    for name in ("prefect.db-wal", "prefect.db-shm", "profiles.toml"):
        (tmp_path / name).touch()
    with prefect_server(tmp_path, 0):
        assert not (tmp_path / "prefect.db-shm").exists() and (tmp_path / "profiles.toml").exists()
