"""An endpoint is asked in the protocol's form; what is wrong with it ends in one line within seconds."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from training_core.config import SettingsError
from training_core.export import endpoint
from training_core.export.endpoint import KEY_VARIABLE, open_endpoint

Answer = Callable[[str, dict[str, str], Any], tuple[int, dict[str, str], Any]]
LISTED = {"data": [{"id": "small"}]}
REPLY = {
    "choices": [{"message": {"content": "{}"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3},
}
KEY = "sk-secret-of-this-test"


class StandIn(ThreadingHTTPServer):
    """Answers as a function says, and keeps what it was asked: path, headers, body."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.asked: list[tuple[str, dict[str, str], Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(size)) if size else None
        asked = (self.path, dict(self.headers), body)
        self.server.asked.append(asked)
        status, headers, content = self.server.answer(*asked)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], StandIn]]:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(endpoint, "_WAIT_SECONDS", 0.01)
    servers: list[StandIn] = []

    def start(answer: Answer) -> StandIn:
        servers.append(StandIn(answer))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def well(path: str, *_: Any) -> tuple[int, dict[str, str], Any]:
    return 200, {}, LISTED if path.endswith("/models") else REPLY


def asked_once(url: str, model: str | None = None, **extra: Any) -> endpoint.Reply:
    with open_endpoint(url, model, extra) as found:
        return found.ask([{"role": "user", "content": "a"}], 9)


def problem(url: str, model: str | None = None) -> str:
    with pytest.raises(SettingsError) as error:
        asked_once(url, model)
    (line,) = error.value.problems
    assert "\n" not in line
    return line


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_endpoint_is_asked_at_any_form_of_its_address(path: str, serve: Callable[[Answer], StandIn]) -> None:
    server = serve(well)
    reply = asked_once(f"{server.url}{path}")
    assert (reply.text, reply.finish_reason, reply.prompt_tokens, reply.completion_tokens) == ("{}", "stop", 7, 3)
    assert [asked[0] for asked in server.asked] == ["/v1/models", "/v1/chat/completions"]


def test_request_says_nothing_about_decoding(serve: Callable[[Answer], StandIn]) -> None:
    server = serve(well)
    asked_once(server.url)
    asked_once(server.url, temperature=0)
    first, second = (body for path, _, body in server.asked if path.endswith("completions"))
    assert first == {"model": "small", "messages": [{"role": "user", "content": "a"}], "max_tokens": 9}
    assert second == first | {"temperature": 0}


def test_key_is_sent_to_the_host_and_never_shown(
    serve: Callable[[Answer], StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    server = serve(lambda *_: (401, {}, {"error": f"Incorrect API key provided: {KEY}\x1b[31m"}))
    line = problem(server.url, "small")
    assert server.asked[0][1]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in line and "\x1b" not in line and f"set {KEY_VARIABLE}" in line
    monkeypatch.setenv(KEY_VARIABLE, "sk\n-broken")
    assert "sk" not in problem(server.url, "small").partition("; ")[2]


def test_redirect_is_not_followed(serve: Callable[[Answer], StandIn], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    other = serve(well)
    server = serve(lambda path, *_: (307, {"Location": f"{other.url}{path}"}, {}))
    assert f"redirects to {other.url}" in problem(server.url, "small")
    assert not other.asked


def test_endpoint_that_is_not_there_is_one_line(serve: Callable[[Answer], StandIn]) -> None:
    server = serve(well)
    url = server.url
    server.shutdown()
    server.server_close()
    assert "does not answer (ConnectError); start it, or correct URL" in problem(url)


def test_endpoint_that_hangs_is_one_line(serve: Callable[[Answer], StandIn], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "_REACH_SECONDS", 0.2)
    ended = threading.Event()

    def hang(*_: Any) -> tuple[int, dict[str, str], Any]:
        ended.wait(20)
        return 200, {}, {}

    started = time.monotonic()
    assert "does not answer (ReadTimeout)" in problem(serve(hang).url)
    ended.set()
    assert time.monotonic() - started < 15


def test_transient_answers_are_tried_again_and_others_not(serve: Callable[[Answer], StandIn]) -> None:
    replies = iter([(503, {}, {}), (429, {}, {}), (200, {}, REPLY), (400, {}, {"error": "context too long"})])
    server = serve(lambda path, *_: (200, {}, LISTED) if path.endswith("/models") else next(replies))
    assert asked_once(server.url).text == "{}"
    assert 'answers 400: {"error": "context too long"}' in problem(server.url)
    assert len([path for path, *_ in server.asked if path.endswith("completions")]) == 4


def test_endpoint_of_several_models_asks_for_a_name(serve: Callable[[Answer], StandIn]) -> None:
    server = serve(lambda *_: (200, {}, {"data": [{"id": "one"}, {"id": "two"}]}))
    assert "--model: expected the model's name" in problem(server.url) and "it serves one, two" in problem(server.url)


@pytest.mark.parametrize("content", [b"<html>", b"[]", {"choices": []}, {"choices": [{"message": None}]}, {}])
def test_answer_out_of_form_is_one_line(content: Any, serve: Callable[[Answer], StandIn]) -> None:
    server = serve(lambda path, *_: (200, {}, LISTED if path.endswith("/models") else content))
    assert "OpenAI-compatible server" in problem(server.url)


@pytest.mark.parametrize("url", ["http://user:word@host/v1", "ftp://host", "http://", "http://host/v1?key=1"])
def test_address_with_a_password_or_query_is_rejected(url: str) -> None:
    line = problem(url)
    assert line.startswith("URL: expected an address such as") and "word" not in line.replace("password", "")
