"""Folders that travel between machines through the artifact store: uploaded, downloaded where missing, and verified."""

import contextlib
import os
import re
from pathlib import Path
from uuid import uuid4

import fsspec
from filelock import FileLock
from fsspec import AbstractFileSystem

from tasks.refs import FolderRef
from training_core.config import RunConfig, SettingsError
from training_core.escaping import without_secrets
from training_core.folders import MANIFEST, complete_folder, seal_digest
from training_core.rows.files import client_errors_as_os_errors
from training_core.training.checkpoints import step_of

VARIABLE = "SFT_FLOW_STORE"


def publish(folder: Path) -> FolderRef:
    """Upload a sealed folder to the artifact store; without a store it can be opened on this machine only.

    The store is the URL in ``SFT_FLOW_STORE``, with any protocol that fsspec knows (``s3://…``, ``gs://…``, a shared
    path). A folder's name there is the digest of its manifest, so publishing twice changes nothing. Raises
    ``FileNotFoundError`` when the folder is incomplete or damaged, and ``OSError`` when the store fails.
    """
    digest = seal_digest(folder)
    if digest is None:
        raise FileNotFoundError(f"expected a complete folder to upload, but {folder} is incomplete or damaged")
    url = _store_url("folders", digest[:16])
    if url:
        _upload(folder, url)
    return FolderRef(str(folder), url, digest)


def open_folder(ref: FolderRef, config: RunConfig) -> Path:
    """The path of the folder on this machine: where it was written, or where it is downloaded to from the store.

    Only paths in this worker's own ``output_dir`` are used: the same path may be another folder on another machine.

    Raises ``SettingsError`` when the digest is none, ``FileNotFoundError`` when the folder is neither here nor in the
    store, or when the store's files are not those that were published, and ``OSError`` when the store fails.
    """
    if not re.fullmatch("[0-9a-f]{64}", ref.digest):  # it names a folder here
        raise SettingsError([f"expected the digest of a folder, 64 of the characters 0-9 and a-f, got {ref.digest!r}"])
    own = Path(config.output_dir).resolve()
    fetched = own / "fetched" / ref.digest[:16]
    for folder in (Path(ref.path).resolve(), fetched):
        if folder.is_relative_to(own) and seal_digest(folder) == ref.digest:
            return folder
    if ref.url is None:
        fix = f"set {VARIABLE} to a URL that all workers reach, and run again"
        raise FileNotFoundError(f"{ref.path} is missing or damaged on this machine and was not uploaded; {fix}")
    fetched.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(fetched.with_name(f".{fetched.name}.lock")):  # several workers may share a folder
        if seal_digest(fetched) != ref.digest:
            _download(ref.url, fetched)
    if seal_digest(fetched) != ref.digest:
        raise FileNotFoundError(f"the files at {ref.url} are not those that were published; delete it and run again")
    return fetched


@client_errors_as_os_errors()
def save_progress(run_dir: Path, fingerprint: str, saved_step: int) -> int:
    """Upload the newest complete checkpoint after ``saved_step``, and the journal; returns the step of the newest
    checkpoint in the store. When a machine dies, another one resumes the training from there. Raises ``OSError`` when
    the store fails."""
    url = _store_url("runs", fingerprint[:16])
    if url is None:
        return saved_step
    newest = _newest_step(run_dir)
    if newest <= saved_step:
        return saved_step
    filesystem, root = fsspec.core.url_to_fs(url)
    filesystem.makedirs(root, exist_ok=True)
    # The journal first: a checkpoint without the points before it could not be resumed.
    filesystem.put_file(str(run_dir / "journal.jsonl"), f"{root}/journal.jsonl")
    _upload(run_dir / "checkpoints" / f"checkpoint-{newest}", f"{url}/checkpoint-{newest}")
    for older in _stored_steps(filesystem, root):  # also what is left of one that was deleted in part
        if older < newest:
            with contextlib.suppress(FileNotFoundError):  # another machine with the same training deleted it
                filesystem.rm(f"{root}/checkpoint-{older}", recursive=True)
    return newest


@client_errors_as_os_errors()
def restore_progress(run_dir: Path, fingerprint: str) -> int | None:
    """Download the store's newest checkpoint and its journal, unless this machine has a checkpoint that is as new;
    returns its step. Raises ``OSError`` when the store fails."""
    url = _store_url("runs", fingerprint[:16])
    if url is None:
        return None
    filesystem, root = fsspec.core.url_to_fs(url)
    steps = _stored_steps(filesystem, root)
    newest = max((step for step in steps if _has(filesystem, root, f"checkpoint-{step}", MANIFEST)), default=0)
    if newest <= _newest_step(run_dir):
        return None
    run_dir.mkdir(parents=True, exist_ok=True)
    filesystem.get_file(f"{root}/journal.jsonl", str(run_dir / "journal.jsonl"))
    _download(f"{url}/checkpoint-{newest}", run_dir / "checkpoints" / f"checkpoint-{newest}")
    return newest


def _newest_step(run_dir: Path) -> int:
    manifests = (run_dir / "checkpoints").glob(f"checkpoint-*/{MANIFEST}")
    return max((step_of(path.parent) or 0 for path in manifests), default=0)


def _stored_steps(filesystem: AbstractFileSystem, root: str) -> set[int]:
    """The steps of all checkpoints in the store, complete or not. ``glob`` would leave out what it fails to list."""
    filesystem.invalidate_cache(root)  # another machine may have uploaded since
    try:
        steps = {step_of(Path(name.rstrip("/"))) for name in filesystem.ls(root, detail=False)}
    except FileNotFoundError:
        return set()
    return {step for step in steps if step is not None}


def _has(filesystem: AbstractFileSystem, *parts: str) -> bool:
    """Whether a file is in the store. ``exists`` would say no when the store fails."""
    try:
        filesystem.info("/".join(parts))
    except FileNotFoundError:
        return False
    return True


def store_problems(needed: bool) -> list[str]:
    """Why folders cannot travel through the artifact store. Writes an empty file to it and deletes the file."""
    try:
        url = _store_url(f"write-check-{uuid4()}")
    except SettingsError as error:
        return error.problems
    if url is None:
        fix = "set it to a URL that all workers reach, such as s3://bucket/sft-flow"
        return [f"{VARIABLE} is not set, and train_on names another pool; {fix}"] if needed else []
    try:
        with client_errors_as_os_errors():
            filesystem, root = fsspec.core.url_to_fs(url)
            filesystem.makedirs(root.rpartition("/")[0], exist_ok=True)
            filesystem.pipe_file(root, b"")
            filesystem.rm_file(root)
    except (OSError, ValueError, ImportError) as error:
        fix = "set it to a URL that all workers can write to"
        return [f"{VARIABLE}: cannot write to {os.environ[VARIABLE]!r}: {error}; {fix}"]
    return []


def _store_url(*parts: str) -> str | None:
    store = os.environ.get(VARIABLE, "")
    if without_secrets(store) != store:  # addresses of folders go to servers, with the references to them
        fix = "give keys to its client, as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or in ~/.config/fsspec"
        raise SettingsError([f"{VARIABLE}: expected an address without a password, got {store!r}; {fix}"])
    return "/".join([store.rstrip("/"), *parts]) if store else None


@client_errors_as_os_errors()
def _upload(folder: Path, url: str) -> None:
    """All files, the manifest last: a folder without a manifest is incomplete and is not used."""
    filesystem, root = fsspec.core.url_to_fs(url)
    if _has(filesystem, root, MANIFEST):
        return
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for name in sorted(names, key=lambda name: name == MANIFEST):
        target = f"{root}/{name}"
        filesystem.makedirs(target.rpartition("/")[0], exist_ok=True)
        filesystem.put_file(str(folder / name), target)


@client_errors_as_os_errors()
def _download(url: str, folder: Path) -> None:
    """``folder`` appears only when all files are there."""
    filesystem, root = fsspec.core.url_to_fs(url)
    filesystem.invalidate_cache(root)
    if not _has(filesystem, root, MANIFEST):
        raise FileNotFoundError(f"the folder {url} is missing or incomplete; run again what writes it")
    with complete_folder(folder, seal_it=False) as draft:
        for path in filesystem.find(root):
            target = (draft / path.removeprefix(root).lstrip("/")).resolve()
            if not target.is_relative_to(draft.resolve()):
                raise SettingsError([f"{url}: {path!r} leads out of the folder; nothing was downloaded"])
            target.parent.mkdir(parents=True, exist_ok=True)
            filesystem.get_file(path, str(target))
        if seal_digest(draft) is None:  # ``find`` leaves out what it fails to list
            raise FileNotFoundError(f"not all files at {url} could be listed, or they are damaged; run again")
