"""A hub on this machine: one model with several commits, asked by the real client over HTTP."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

NAME = "some/base"

_ASKED = re.compile(rf"/(?:api/models/)?{NAME}/(?P<what>revision|tree|resolve)/(?P<revision>[^/?]+)/?(?P<file>[^?]*)")
_FILE_OF = "/{repo_id}/resolve/{revision}/{filename}"


def commit_of(number: int) -> str:
    return f"{number:040x}"


@contextmanager
def hub_with(commits: list[Path], tags: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``commits``: the files of each, the last one being ``main``; ``tags``: names of some by their number."""
    names = tags | {"main": len(commits) - 1} | {commit_of(number): number for number in range(len(commits))}
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Hub, commits, names))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + _FILE_OF)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


class _Hub(BaseHTTPRequestHandler):
    def __init__(self, commits: list[Path], names: dict[str, int], *request: Any) -> None:
        self.commits, self.names = commits, names
        super().__init__(*request)

    def do_GET(self) -> None:
        asked = _ASKED.match(self.path)
        assert asked, self.path
        number = self.names.get(asked["revision"])
        if number is None:
            self._answer(b"", 404, {"X-Error-Code": "RevisionNotFound"})
        elif asked["what"] == "resolve":
            content = (self.commits[number] / asked["file"]).read_bytes()
            self._answer(content, headers={"X-Repo-Commit": commit_of(number), "ETag": f'"{_digest(content)}"'})
        elif asked["what"] == "tree":
            self._answer(json.dumps([_entry(file) for file in self.commits[number].iterdir()]).encode())
        else:
            files = [{"rfilename": file.name} for file in self.commits[number].iterdir()]
            self._answer(json.dumps({"id": NAME, "sha": commit_of(number), "siblings": files}).encode())

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def _entry(file: Path) -> dict[str, Any]:
    content = file.read_bytes()
    return {"type": "file", "path": file.name, "size": len(content), "oid": _digest(content)}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
