"""Folders that travel between machines: published under a URL, fetched where they are missing, checked on arrival."""

import contextlib
import os
from pathlib import Path
from uuid import uuid4

import fsspec
from filelock import FileLock
from prefect import get_run_logger

from tasks.recovery import Attempt
from tasks.refs import FolderRef
from training_core.config import RunConfig
from training_core.folders import MANIFEST, complete_folder, seal_digest
from training_core.training.checkpoints import step_of

VARIABLE = "SFT_FLOW_STORE"


def publish(folder: Path) -> FolderRef:
    """Put a sealed folder where other machines find it; without a store it is found on this machine only.

    The store is the URL in ``SFT_FLOW_STORE``, of any kind that fsspec knows (``s3://…``, ``gs://…``, a shared path).
    Folders lie there by the digest of their manifest, so publishing twice changes nothing.
    """
    digest = seal_digest(folder)
    if digest is None:
        raise FileNotFoundError(f"{folder} is incomplete or damaged and cannot be published")
    url = _place("folders", digest[:16])
    if url:
        _upload(folder, url)
    return FolderRef(str(folder), url, digest)


def open_folder(ref: FolderRef, config: RunConfig) -> Path:
    """The folder on this machine: where it was made, or fetched from the store.

    Nothing outside this side's own ``output_dir`` is looked at: the other side's disk is another machine's.

    Raises ``FileNotFoundError`` when it is neither here nor in the store, or when what comes is not what was published.
    """
    own = Path(config.output_dir).resolve()
    fetched = own / "fetched" / ref.digest[:16]
    for folder in (Path(ref.path), fetched):
        if folder.is_relative_to(own) and seal_digest(folder) == ref.digest:
            return folder
    if ref.url is None:
        fix = f"set {VARIABLE} to a URL that all workers reach"
        raise FileNotFoundError(f"{ref.path} is not here or damaged, and was published nowhere; {fix}")
    fetched.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(fetched.with_name(f".{fetched.name}.lock")):  # several workers may share a folder
        if seal_digest(fetched) != ref.digest:
            _download(ref.url, fetched)
    if seal_digest(fetched) != ref.digest:
        raise FileNotFoundError(f"{ref.url} does not hold the folder that was published there")
    return fetched


def save_progress(run_dir: Path, fingerprint: str, saved_step: int) -> int:
    """Copy the newest complete checkpoint after ``saved_step`` and the journal to the store; returns the step that is
    safe now. A training whose machine is gone goes on from there on another."""
    url = _place("runs", fingerprint[:16])
    if url is None:
        return saved_step
    newest = _newest_step(run_dir)
    if newest <= saved_step:
        return saved_step
    files, place = fsspec.core.url_to_fs(url)
    files.makedirs(place, exist_ok=True)
    files.put_file(str(run_dir / "journal.jsonl"), f"{place}/journal.jsonl")  # first: the checkpoint stands on it
    _upload(run_dir / "checkpoints" / f"checkpoint-{newest}", f"{url}/checkpoint-{newest}")
    for older in _stored_steps(url) - {newest}:
        if older < newest:
            with contextlib.suppress(FileNotFoundError):  # another machine that trains the same was faster
                files.rm(f"{place}/checkpoint-{older}", recursive=True)
    return newest


def restore_progress(run_dir: Path, fingerprint: str) -> None:
    """Fetch the store's newest checkpoint and its journal where this machine has none as new."""
    url = _place("runs", fingerprint[:16])
    if url is None:
        return
    newest = max(_stored_steps(url), default=0)
    if newest <= _newest_step(run_dir):
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    files, place = fsspec.core.url_to_fs(url)
    files.get_file(f"{place}/journal.jsonl", str(run_dir / "journal.jsonl"))
    _download(f"{url}/checkpoint-{newest}", run_dir / "checkpoints" / f"checkpoint-{newest}")
    get_run_logger().info("Checkpoint %d fetched from %s: another machine trained this far", newest, url)


def _newest_step(run_dir: Path) -> int:
    manifests = (run_dir / "checkpoints").glob(f"checkpoint-*/{MANIFEST}")
    return max((step_of(path.parent) or 0 for path in manifests), default=0)


def _stored_steps(url: str) -> set[int]:
    files, place = fsspec.core.url_to_fs(url)
    return {step_of(Path(path).parent) or 0 for path in files.glob(f"{place}/checkpoint-*/{MANIFEST}")}


def store_problems(needed: bool) -> list[str]:
    """Why folders could not travel. Writes an empty file into the store, and deletes it."""
    url = _place(f"probe-{uuid4()}")
    if url is None:
        fix = "give it a URL that all workers reach, such as s3://bucket/sft-flow"
        return [f"{VARIABLE} is not set, and train_on names another pool; {fix}"] if needed else []
    with Attempt() as attempt:
        files, place = fsspec.core.url_to_fs(url)
        files.makedirs(place.rpartition("/")[0], exist_ok=True)
        files.pipe_file(place, b"")
        files.rm_file(place)
    fix = "name a URL that all workers write to"
    problem = f"{VARIABLE}: {os.environ[VARIABLE]!r} cannot be written: {attempt.told}; {fix}"
    return [problem] if attempt.error else []


def _place(*parts: str) -> str | None:
    store = os.environ.get(VARIABLE)
    return "/".join([store.rstrip("/"), *parts]) if store else None


def _upload(folder: Path, url: str) -> None:
    """All files, the manifest last: a folder without one does not count."""
    files, place = fsspec.core.url_to_fs(url)
    if files.exists(f"{place}/{MANIFEST}"):
        return
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for name in sorted(names, key=lambda name: name == MANIFEST):
        target = f"{place}/{name}"
        files.makedirs(target.rpartition("/")[0], exist_ok=True)
        files.put_file(str(folder / name), target)


def _download(url: str, folder: Path) -> None:
    """The folder appears whole or not at all."""
    files, place = fsspec.core.url_to_fs(url)
    if not files.exists(f"{place}/{MANIFEST}"):
        raise FileNotFoundError(f"{url} is not in the store, or not complete")
    with complete_folder(folder, seal_it=False) as draft:
        for path in files.find(place):
            target = draft / path.removeprefix(place).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(path, str(target))
