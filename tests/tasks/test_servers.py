"""Servers that do not answer are named at once, in one line each."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from tasks.servers import require_answers, server_problems

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


@contextlib.contextmanager
def answering(status: int, body: bytes, *, slowly: bool = False, redirected: bool = False) -> Iterator[str]:
    """A server that answers every request alike; with ``slowly`` it never comes to the end of its answer, and
    ``redirected`` it sends to another page first, as a guard does to its login."""
    ended = threading.Event()

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if redirected and self.path != "/login":
                self.send_response(302)
                self.send_header("Location", "/login")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(status)
            self.send_header("Content-Length", str(1_000_000 if slowly else len(body)))
            self.end_headers()
            self.wfile.write(body)
            while slowly and not ended.wait(0.05):
                self.wfile.write(b" ")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    ended.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["PREFECT_API_URL", "MLFLOW_TRACKING_URI"])
@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, b"<html>Welcome</html>", "got '200 OK' from another server"),
        (200, b"", "got '200 OK' from another server"),
        (200, b"{}", "got '200 OK' from another server"),
        (200, b"[1]", "got '200 OK' from another server"),
        (404, b"not here", "got '404 Not Found' from another server"),
        (429, b"", "the server answers '429 Too Many Requests'; wait"),
        (500, b"boom", "the server answers '500 Internal Server Error'; wait"),
        (503, b"<html>", "the server answers '503 Service Unavailable'; wait"),
    ],
)
def test_server_of_another_kind_or_that_fails_is_one_problem(
    monkeypatch: pytest.MonkeyPatch, name: str, status: int, body: bytes, words: str
) -> None:
    with answering(status, body) as address:
        monkeypatch.setenv(name, address)
        (problem,) = server_problems()
    assert problem.startswith(f"{name}: {address}: ")
    assert words in problem


@pytest.mark.parametrize(
    ("name", "status", "body"),
    [
        ("PREFECT_API_URL", 200, b'"3.8.6"'),
        ("MLFLOW_TRACKING_URI", 200, b'{"experiment": {}}'),
        ("MLFLOW_TRACKING_URI", 404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}'),
        ("MLFLOW_TRACKING_URI", 403, b"Permission denied"),
    ],
)
def test_server_that_answers_as_one_is_no_problem(
    monkeypatch: pytest.MonkeyPatch, name: str, status: int, body: bytes
) -> None:
    with answering(status, body) as address:
        monkeypatch.setenv(name, address)
        assert server_problems() == []


@pytest.mark.parametrize("name", ["PREFECT_API_URL", "MLFLOW_TRACKING_URI"])
@pytest.mark.parametrize(("status", "redirected"), [(200, True), (404, True), (400, False), (405, False)])
def test_guard_before_a_server_is_left_to_the_client(
    monkeypatch: pytest.MonkeyPatch, name: str, status: int, redirected: bool
) -> None:
    with answering(status, b"<html>Who are you?</html>", redirected=redirected) as address:
        monkeypatch.setenv(name, address)
        assert server_problems() == []


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("PREFECT_API_URL", "PREFECT_API_KEY"),
        ("PREFECT_API_URL", "PREFECT_CLIENT_CUSTOM_HEADERS"),
        ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_AUTH"),
        ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_CLIENT_CERT_PATH"),
    ],
)
@pytest.mark.parametrize("status", [200, 401, 404])
def test_guard_that_the_clients_own_settings_pass_is_left_to_the_client(
    monkeypatch: pytest.MonkeyPatch, name: str, variable: str, status: int
) -> None:
    monkeypatch.setenv(variable, "{}")
    with answering(status, b"<html>Who are you?</html>") as address:
        monkeypatch.setenv(name, address)
        assert server_problems() == []


def test_guard_that_headers_of_a_plugin_pass_is_left_to_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = EntryPoint("guard", "guard:Headers", "mlflow.request_header_provider")
    monkeypatch.setattr("tasks.servers.entry_points", lambda group: EntryPoints([plugin]).select(group=group))
    with answering(404, b"<html>Who are you?</html>") as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert server_problems() == []


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_server_that_cannot_answer_now_is_away(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    with answering(status, b"<html>") as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(ConnectionError, match=f"MLFLOW_TRACKING_URI: {address}: the server answers '{status} "):
            require_answers("MLFLOW_TRACKING_URI")


def test_server_with_another_problem_is_not_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    require_answers("MLFLOW_TRACKING_URI")
    with answering(404, b"not here") as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        require_answers("MLFLOW_TRACKING_URI")


def test_server_that_never_ends_its_answer_is_one_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.servers._SECONDS", 0.2)
    with answering(200, b'"3', slowly=True) as address:
        monkeypatch.setenv("PREFECT_API_URL", address)
        (problem,) = server_problems()
    assert "no answer (timed out)" in problem


def test_server_without_encryption_is_one_problem_at_an_encrypted_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(200, b'"3.8.6"') as address:
        monkeypatch.setenv("PREFECT_API_URL", address.replace("http:", "https:"))
        (problem,) = server_problems()
    assert "no answer (" in problem


@pytest.mark.parametrize(
    "address", ["127.0.0.1:4200/api", "htp://127.0.0.1:4200/api", "sqlite:///prefect.db", "prefect"]
)
def test_address_of_prefect_that_is_none_is_one_problem(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("PREFECT_API_URL", address)
    (problem,) = server_problems()
    assert "expected http://HOST:PORT/api, got another address" in problem


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "other://me:secret@127.0.0.1:9", "http://127.0.0.1:port"])
def test_proxy_that_clients_cannot_use_is_the_only_problem(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("all_proxy", proxy)
    monkeypatch.setenv("PREFECT_API_URL", "no address")
    (problem,) = server_problems()
    assert problem.startswith("HTTP_PROXY, HTTPS_PROXY, ALL_PROXY or NO_PROXY: ")
    assert "secret" not in problem


def test_database_that_never_answers_is_one_problem(monkeypatch: pytest.MonkeyPatch, silent: str) -> None:
    monkeypatch.setattr("tasks.servers._SECONDS", 0.2)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://me:secret@{silent}/db")
    (problem,) = server_problems()
    assert "no answer (timed out)" in problem
    assert "secret" not in problem


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
        ("127.0.0.1:5000", "expected http://HOST:PORT, got another address"),
        ("postgresql://me:secret@/db?host=/no/such/folder", "no answer"),
        ("sqlite:///{file}", "it is damaged (file is not a database)"),
        ("sqlite:///{folder}", "expected a SQLite database, found a folder"),
        ("https://me:secret@{closed}/api", "set MLFLOW_TRACKING_USERNAME"),
        ("http://no-such-host.invalid:5000", "no answer"),
        ("postgresql://me:secret@{closed}/db", "no answer"),
        ("mysql://me:secret@{closed}/db", "driver is not installed (No module named 'MySQLdb')"),
    ],
)
def test_address_that_cannot_work_is_one_problem(
    monkeypatch: pytest.MonkeyPatch, closed: str, tmp_path: Path, address: str, words: str
) -> None:
    (file := tmp_path / "notes.txt").write_text("not a database")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.format(closed=closed, file=file, folder=tmp_path))
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
