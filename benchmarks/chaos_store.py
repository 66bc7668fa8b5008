"""An artifact store over HTTP, whose client repeats nothing, and uploads and downloads through the proxy in front."""

import contextlib
import io
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any, ClassVar
from urllib.parse import urlsplit

import fsspec
import httpx

from benchmarks.chaos_proxy import Fault, proxy
from benchmarks.chaos_registry import environment
from benchmarks.chaos_retries import repeat
from benchmarks.chaos_table import Trial
from tasks.artifact_store import VARIABLE, open_folder, publish, restore_progress, save_progress
from training_core.config import read_settings
from training_core.folders import seal, seal_digest
from training_core.training.checkpoints import latest_complete_checkpoint, step_of

PROTOCOL = "chaos"
_FINGERPRINT = "f" * 64
_STEPS, _SHARE_OF_FAULTS = (1, 2, 3), 1 / 20
_TIMEOUT_SECONDS = 2  # less than a socket hangs
_FAULTS = [Fault.LOST, Fault.REFUSED, Fault.ERROR, Fault.SLOW, Fault.HUNG]


@lru_cache
def _client() -> httpx.Client:
    return httpx.Client(timeout=_TIMEOUT_SECONDS, trust_env=False)


class HttpStore(fsspec.AbstractFileSystem):
    """Files of a ``StandIn``; a path begins with its host and port."""

    protocol = PROTOCOL
    cachable = False

    def _ask(self, method: str, path: str, data: bytes | None = None) -> bytes:
        try:
            answer = _client().request(method, f"http://{path}", content=data)
        except httpx.TransportError as error:
            raise ConnectionError(str(error)) from error
        if answer.status_code == HTTPStatus.NOT_FOUND:
            raise FileNotFoundError(path)
        if answer.is_error:
            raise OSError(f"{path}: {answer.status_code}")
        return answer.content

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """What is in a folder, or the file itself."""
        path = self._strip_protocol(path).rstrip("/")
        found: dict[str, dict[str, Any]] = {}
        for name, size in json.loads(self._ask("GET", f"{path}?list")).items():
            first, _, deeper = name.partition("/")
            place = f"{path}/{first}".rstrip("/")
            found[place] = {"name": place, "size": size, "type": "directory" if deeper else "file"}
        return list(found.values() if detail else found)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """An object store has no folders."""

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        """Upload a file."""
        self._ask("PUT", self._strip_protocol(rpath), Path(lpath).read_bytes())

    def _rm(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # a folder is gone with its files
            self._ask("DELETE", path)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> io.BytesIO:
        return io.BytesIO(self._ask("GET", path))


class StandIn(ThreadingHTTPServer):
    """Keeps what it is sent, as S3 does: a file is there when all of it is."""

    daemon_threads = True

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def below(self, path: str) -> dict[str, int]:
        """The files of a folder by their names in it, and their sizes; the name of a file itself is empty."""
        found = {
            name[len(path) :].lstrip("/"): len(content)
            for name, content in self.files.items()
            if name == path or name.startswith(f"{path}/")
        }
        return dict(sorted(found.items()))


class _Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"
    _CODES: ClassVar = {True: HTTPStatus.OK, False: HTTPStatus.NOT_FOUND}

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        found = self.server.below(asked.path)
        content = json.dumps(found).encode() if asked.query else self.server.files.get(asked.path, b"")
        self._answer(bool(found) if asked.query else asked.path in self.server.files, content)

    def do_PUT(self) -> None:
        self.server.files[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(True)

    def do_DELETE(self) -> None:
        self._answer(self.server.files.pop(self.path, None) is not None)

    def _answer(self, found: bool, content: bytes = b"") -> None:
        self.send_response_only(self._CODES[found])
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextlib.contextmanager
def stand_in() -> Iterator[StandIn]:
    """A running store, which fsspec knows by its protocol."""
    fsspec.register_implementation(PROTOCOL, HttpStore, clobber=True)
    with StandIn() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


def store_faults(home: Path, seeds: Iterator[Random]) -> Iterator[Trial]:
    """The artifact store loses answers, refuses, hangs, answers with a 500 or is late, while checkpoints and an adapter
    are uploaded by one machine and downloaded by another."""
    with stand_in() as store:
        for random in seeds:
            store.files.clear()
            yield _disturbed(store, home / "machines", random)
            shutil.rmtree(home / "machines")


def _disturbed(store: StandIn, home: Path, random: Random) -> Trial:
    def choose(_method: str, _path: str) -> Fault:
        return random.choice(_FAULTS) if random.random() < _SHARE_OF_FAULTS else Fault.NONE

    problem = ""
    with proxy(store.address, choose) as faulty:
        address = faulty.address.replace("http", PROTOCOL)
        with environment(**{VARIABLE: f"{address}/bucket"}):
            try:
                travel(home / "here", home / "there")
            except OSError as error:
                problem = f"{type(error).__name__}: {error}"[:500]
    injected = sum(faulty.injected.values())
    lost = lacking(home / "here" / "run", home / "there" / "run")
    problem = problem or ", ".join(lost)
    return Trial(injected, 0 if problem else injected, len(lost), 0, problem)


def travel(here: Path, there: Path) -> None:
    """Upload checkpoint after checkpoint and then the adapter, and download what another machine would go on with."""
    saved = 0
    for step in _STEPS:
        _write_checkpoint(here / "run", step)
        saved = repeat(lambda saved=saved: save_progress(here / "run", _FINGERPRINT, saved))  # type: ignore[misc]
    ref = repeat(lambda: publish(here / "run" / "checkpoints" / f"checkpoint-{saved}"))
    repeat(lambda: restore_progress(there / "run", _FINGERPRINT))
    moved = replace(ref, path=str(there / "gone"))
    repeat(lambda: open_folder(moved, read_settings({"output_dir": str(there), "dataset_path": "rows.jsonl"})))


def _write_checkpoint(run: Path, step: int) -> None:
    folder = run / "checkpoints" / f"checkpoint-{step}"
    (folder / "inner").mkdir(parents=True)
    for name in ("weights", "optimizer", "inner/state"):
        (folder / name).write_text(f"{name} {step}")
    seal(folder)
    (run / "journal.jsonl").write_text("".join(f"point {one}\n" for one in range(1, step + 1)))


def lacking(here: Path, there: Path) -> list[str]:
    """What the other machine lacks."""
    restored = latest_complete_checkpoint(there / "checkpoints")
    same = restored is not None and seal_digest(restored) == seal_digest(here / "checkpoints" / restored.name)
    newest = same and restored is not None and step_of(restored) == _STEPS[-1]
    journal = there / "journal.jsonl"
    points = journal.read_text().count("\n") if journal.exists() else 0
    return ["checkpoint"] * (not newest) + ["journal"] * (points != _STEPS[-1])
