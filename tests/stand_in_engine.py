"""A stand-in for Docker's engine: records requests, and runs a container that is killed at once."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KILLED = 137


class StandInEngine(ThreadingHTTPServer):
    """Implements the part of the engine's API that a worker needs to start and follow one container."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.created: list[dict[str, Any]] = []
        self.ended = False


class _Handler(BaseHTTPRequestHandler):
    server: StandInEngine

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.endswith("/version"):
            self._answer({"Version": "28.0.0", "ApiVersion": "1.48", "MinAPIVersion": "1.24"})
        elif path.endswith("/logs"):
            self.server.ended = True  # output ends where the container does
            self._answer(None)
        elif "/images/" in path:
            self._answer({"Id": "image"})
        elif self.server.ended and self.server.created[0]["HostConfig"].get("AutoRemove"):
            self._answer({"message": "No such container"}, 404)
        else:
            self._answer(self._container())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        if path.endswith("/containers/create"):
            self.server.created.append(json.loads(body))
            self._answer({"Id": "container", "Warnings": []}, 201)
        elif path.endswith("/wait"):
            self._answer({"StatusCode": KILLED})
        else:
            self._answer(None, 204)

    def _container(self) -> dict[str, Any]:
        state = {"Status": "exited", "ExitCode": KILLED} if self.server.ended else {"Status": "running", "ExitCode": 0}
        log = {"LogConfig": {"Type": "json-file"}}
        return {"Id": "container", "Name": "/run", "State": state, "HostConfig": log, "Config": {"Tty": True}}

    def _answer(self, content: object, status: int = 200) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output short."""
