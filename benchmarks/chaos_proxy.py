"""An HTTP proxy on loopback that breaks what it is told to: between sft-flow and MLflow, Prefect or a store."""

import contextlib
import http.client
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

HUNG_SECONDS: Final = 8.0
SLOW_SECONDS: Final = 0.3
LATE_SECONDS: Final = 20.0

_HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length")


class Fault(StrEnum):
    """What happens to one request; a lost answer is that of a request which the server has done."""

    NONE = "none"
    REFUSED = "connection closed before the request arrives"
    HUNG = "socket hangs"
    ERROR = "answer is a 500"
    AWAY = "answer is a 503"
    SLOW = "answer is late"
    LOST = "request is done, its answer is lost"
    LATE = "request is done long after the client has given up"


Choose = Callable[[str, str], Fault]  # of a request's method and path


class Proxy(ThreadingHTTPServer):
    """A server in front of the one at ``upstream``; ``choose`` decides on each request, ``injected`` counts."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, upstream: str, choose: Choose, port: int = 0) -> None:
        self.upstream = upstream.removeprefix("http://").rstrip("/")
        self.choose, self.injected = choose, Counter[Fault]()
        self.do_late, self.done_late = threading.Event(), list[int]()
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def address(self) -> str:
        """The URL to use in place of the server's."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def finish_late(self) -> None:
        """Let the server do at once all that is late, and return when it is done."""
        self.do_late.set()
        while len(self.done_late) < self.injected[Fault.LATE]:
            time.sleep(0.05)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error here."""


@contextlib.contextmanager
def proxy(upstream: str, choose: Choose, port: int = 0) -> Iterator[Proxy]:
    """A running proxy; at the end of the body its port refuses connections."""
    with Proxy(upstream, choose, port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def never(_method: str, _path: str) -> Fault:
    """No fault."""
    return Fault.NONE


class _Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_one_request(self) -> None:
        """One request of any method, answered as the proxy's choice says."""
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = b"".join(self._chunks()) or self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Upgrade"):
            self._tunnel()
            return
        fault = self.server.choose(self.command, self.path)
        if fault is not Fault.NONE:
            self.server.injected[fault] += 1
        self._answer(fault, body)

    def _chunks(self) -> Iterator[bytes]:
        """The parts of a body that comes without its length, as MLflow's client uploads files."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

    def _answer(self, fault: Fault, body: bytes) -> None:
        if fault is Fault.HUNG:
            time.sleep(HUNG_SECONDS)
        if fault in (Fault.REFUSED, Fault.HUNG, Fault.LATE):
            self._hang_up()
            if fault is Fault.LATE:
                self.server.do_late.wait(LATE_SECONDS)
                self.server.done_late.append(self._forward(body)[0])
        elif fault in (Fault.ERROR, Fault.AWAY):
            self._send(500 if fault is Fault.ERROR else 503, {}, b"injected")
        else:
            status, headers, answer = self._forward(body)
            if fault is Fault.SLOW:
                time.sleep(SLOW_SECONDS)
            if fault is Fault.LOST:
                self._hang_up()
            else:
                self._send(status, headers, answer)

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.server.upstream, timeout=300)
        with contextlib.closing(connection):
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            headers = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP_BY_HOP}
            return answer.status, headers, answer.read()

    def _send(self, status: int, headers: dict[str, str], answer: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _tunnel(self) -> None:
        """Pass a WebSocket through, in both directions, until either side closes it."""
        self.close_connection = True
        host, _, port = self.server.upstream.partition(":")
        with socket.create_connection((host, int(port))) as upstream:
            upstream.sendall(
                self.raw_requestline + str(self.headers).strip().replace("\n", "\r\n").encode() + b"\r\n\r\n"
            )
            threading.Thread(target=_pass_on, args=(upstream, self.connection), daemon=True).start()
            _pass_on(self.connection, upstream)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(65536):
            target.sendall(chunk)
        target.shutdown(socket.SHUT_RDWR)
