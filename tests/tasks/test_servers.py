"""Servers that do not answer are named at once, in one line each."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tasks.servers import server_problems

LOGINS = {
    "PREFECT_API_URL": {"PREFECT_API_AUTH_STRING": "me:wrong"},
    "MLFLOW_TRACKING_URI": {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "wrong"},
}


@pytest.fixture
def closed() -> str:
    """An address of this machine on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def refusing() -> Iterator[str]:
    """A server that answers every request with an error, as one does that wants a password."""

    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(401)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/api"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["PREFECT_API_URL", "MLFLOW_TRACKING_URI"])
def test_server_that_refuses_connections_is_one_problem(
    monkeypatch: pytest.MonkeyPatch, name: str, closed: str
) -> None:
    monkeypatch.setenv(name, f"http://{closed}/api")
    (problem,) = server_problems()
    assert problem.startswith(f"{name}: http://{closed}/api: no answer (")
    assert "unset the variable" in problem


def test_server_that_never_answers_is_one_problem(monkeypatch: pytest.MonkeyPatch, silent: str) -> None:
    monkeypatch.setattr("tasks.servers._SECONDS", 0.2)
    monkeypatch.setenv("PREFECT_API_URL", f"http://{silent}/api")
    (problem,) = server_problems()
    assert "no answer (timed out)" in problem


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:99999", "no answer"),
        ("http://127.0.0.1:abc/api", "expected http://HOST:PORT"),
        ("http://me:secret@127.0.0.1:abc/api", "expected an address without a login"),
        ("http://me:secret/word@127.0.0.1:9", "http"),
        ("https://{closed}/api", "no answer"),
        ("https://me:secret@{closed}/api", "set MLFLOW_TRACKING_USERNAME"),
        ("http://no-such-host.invalid:5000", "no answer"),
        ("postgresql://me:secret@{closed}/db", "no answer"),
        ("mysql://me:secret@{closed}/db", "driver is not installed (No module named 'MySQLdb')"),
    ],
)
def test_address_that_cannot_work_is_one_problem(
    monkeypatch: pytest.MonkeyPatch, closed: str, address: str, words: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.format(closed=closed))
    (problem,) = server_problems()
    assert words in problem
    assert "secret" not in problem


@pytest.mark.parametrize(
    "address", ["", "sqlite:////somewhere/mlflow.db", "databricks", "/a/folder", "file:///a/folder"]
)
def test_address_without_a_server_is_no_problem(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("PREFECT_API_URL", "")
    assert server_problems() == []


@pytest.mark.parametrize("name", LOGINS)
def test_login_that_a_server_refuses_is_one_problem(monkeypatch: pytest.MonkeyPatch, refusing: str, name: str) -> None:
    for variable, value in LOGINS[name].items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv(name, refusing)
    (problem,) = server_problems()
    assert "does not accept the login; set " in problem
    assert "wrong" not in problem


def test_login_in_another_way_is_left_to_the_client(monkeypatch: pytest.MonkeyPatch, refusing: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", refusing)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a token")
    assert server_problems() == []
