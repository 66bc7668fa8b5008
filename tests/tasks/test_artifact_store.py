"""Folders that travel through the artifact store arrive complete, or are reported missing."""

import shutil
from pathlib import Path

import fsspec
import pytest
from fsspec import AbstractFileSystem

from tasks import artifact_store
from tasks.artifact_store import open_folder, publish, restore_progress, save_progress, store_problems
from tasks.refs import FolderRef
from training_core.config import RunConfig, SettingsError
from training_core.folders import MANIFEST, seal, seal_digest
from training_core.rows.files import client_errors_as_os_errors
from training_core.training.checkpoints import latest_complete_checkpoint

FINGERPRINT = "f" * 64


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a store, once on disk and once with a protocol that has no local paths."""
    url = (tmp_path / "store").as_uri() if request.param == "file" else f"memory://{tmp_path}"
    monkeypatch.setenv(artifact_store.VARIABLE, url)
    return url


@pytest.fixture
def there(tmp_path: Path) -> RunConfig:
    """Settings of another machine."""
    return RunConfig(output_dir=str(tmp_path / "there"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sealed folder of this machine."""
    folder = tmp_path / "here" / "adapter"
    write(folder, "weights")
    return folder


class EndpointConnectionError(Exception):
    """Like the errors of botocore and aiohttp: not an ``OSError``."""


def unreachable(*_: object, **__: object) -> None:
    raise EndpointConnectionError("could not connect")


def write(folder: Path, content: str) -> None:
    (folder / "inner").mkdir(parents=True)
    (folder / "a.bin").write_text(content)
    (folder / "inner" / "b.bin").write_text(content)
    seal(folder)


def rewrite(url: str, name: str, content: bytes | None) -> None:
    filesystem, path = fsspec.core.url_to_fs(f"{url}/{name}")
    if content is None:
        filesystem.rm_file(path)
    else:
        filesystem.pipe_file(path, content)


def test_published_folder_opens_on_another_machine(url: str, folder: Path, there: RunConfig) -> None:
    ref = publish(folder)
    assert publish(folder) == ref
    opened = open_folder(ref, there)
    assert opened.is_relative_to(there.output_dir)
    assert seal_digest(opened) == ref.digest
    assert (opened / "inner" / "b.bin").read_text() == "weights"


def test_folder_opens_where_it_was_written_without_the_store(folder: Path) -> None:
    assert open_folder(publish(folder), RunConfig(output_dir=str(folder.parent))) == folder


def test_damaged_download_is_downloaded_again(url: str, folder: Path, there: RunConfig) -> None:
    ref = publish(folder)
    (open_folder(ref, there) / "a.bin").write_text("damaged")
    assert (open_folder(ref, there) / "a.bin").read_text() == "weights"


@pytest.mark.parametrize("name", ["a.bin", "inner/b.bin"])
@pytest.mark.parametrize("content", [b"other", None], ids=["changed", "missing"])
def test_folder_damaged_in_the_store_is_rejected(
    name: str, content: bytes | None, url: str, folder: Path, there: RunConfig
) -> None:
    ref = publish(folder)
    rewrite(str(ref.url), name, content)
    with pytest.raises(FileNotFoundError, match=r"are not those that were published|are damaged; run again"):
        open_folder(ref, there)


def test_partial_upload_is_rejected_and_completed_later(url: str, folder: Path, there: RunConfig) -> None:
    ref = publish(folder)
    rewrite(str(ref.url), MANIFEST, None)  # it is written last
    with pytest.raises(FileNotFoundError, match="missing or incomplete"):
        open_folder(ref, there)
    publish(folder)
    assert open_folder(ref, there)


def test_failed_upload_is_completed_by_publishing_again(
    url: str, folder: Path, there: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    filesystem, _ = fsspec.core.url_to_fs(url)
    put_file = type(filesystem).put_file

    def fail(filesystem: AbstractFileSystem, source: str, target: str) -> None:
        if source.endswith("b.bin"):
            raise ConnectionError
        put_file(filesystem, source, target)

    with monkeypatch.context() as connection, pytest.raises(ConnectionError):
        connection.setattr(type(filesystem), "put_file", fail)
        publish(folder)
    ref = publish(folder)
    assert (open_folder(ref, there) / "inner" / "b.bin").read_text() == "weights"


@pytest.mark.parametrize("digest", ["../../../elsewhere", "", "f" * 63, "F" * 64, "f" * 63 + "\n"])
def test_digest_that_is_none_names_no_folder(folder: Path, there: RunConfig, digest: str) -> None:
    with pytest.raises(SettingsError, match="expected the digest of a folder"):
        open_folder(FolderRef(str(folder), None, digest), there)


def test_path_that_leads_out_of_the_output_folder_is_not_opened(folder: Path, tmp_path: Path) -> None:
    (own := tmp_path / "own").mkdir()
    ref = publish(folder)
    outside = FolderRef(f"{own}/../{folder.relative_to(tmp_path)}", None, ref.digest)
    with pytest.raises(FileNotFoundError, match="missing or damaged on this machine"):
        open_folder(outside, RunConfig(output_dir=str(own)))


def test_name_in_the_store_that_leads_out_of_the_folder_is_not_written(
    url: str, folder: Path, there: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object store has no folders: any key can be there."""
    ref = publish(folder)
    filesystem, root = fsspec.core.url_to_fs(ref.url)
    monkeypatch.setattr(type(filesystem), "find", lambda *_: [f"{root}/a.bin", f"{root}/../../../escaped"])
    with pytest.raises(SettingsError, match="leads out of the folder"):
        open_folder(ref, there)
    assert not list(Path(there.output_dir).rglob("escaped"))


def test_incomplete_folder_is_not_published(url: str, folder: Path) -> None:
    (folder / "a.bin").unlink()
    with pytest.raises(FileNotFoundError, match="is incomplete or damaged"):
        publish(folder)


def test_folder_without_a_store_is_missing_elsewhere(
    folder: Path, there: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(artifact_store.VARIABLE, raising=False)
    ref = publish(folder)
    assert ref == FolderRef(str(folder), None, ref.digest)
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match=f"set {artifact_store.VARIABLE}"):
        open_folder(ref, there)


@pytest.fixture
def progress(tmp_path: Path) -> Path:
    """The folder of a training with two checkpoints and its journal."""
    run = tmp_path / "here" / "run"
    for step in (2, 10):
        write(run / "checkpoints" / f"checkpoint-{step}", f"step {step}")
    (run / "journal.jsonl").write_text("ten steps")
    return run


def test_checkpoint_is_restored_on_another_machine(url: str, progress: Path, tmp_path: Path) -> None:
    assert save_progress(progress, FINGERPRINT, 0) == 10
    assert save_progress(progress, FINGERPRINT, 10) == 10
    elsewhere = tmp_path / "there" / "run"
    assert restore_progress(elsewhere, FINGERPRINT) == 10
    assert restore_progress(elsewhere, FINGERPRINT) is None
    latest = latest_complete_checkpoint(elsewhere / "checkpoints")
    assert latest and (latest.name, (latest / "a.bin").read_text()) == ("checkpoint-10", "step 10")
    assert (elsewhere / "journal.jsonl").read_text() == "ten steps"


@pytest.mark.parametrize("deleted_in_part", [False, True])
def test_checkpoint_upload_deletes_older_ones(deleted_in_part: bool, url: str, progress: Path) -> None:
    save_progress(progress, FINGERPRINT, 0)
    if deleted_in_part:
        rewrite(f"{url}/runs/{FINGERPRINT[:16]}/checkpoint-10", MANIFEST, None)
    write(progress / "checkpoints" / "checkpoint-12", "step 12")
    assert save_progress(progress, FINGERPRINT, 10) == 12
    filesystem, path = fsspec.core.url_to_fs(f"{url}/runs/{FINGERPRINT[:16]}")
    assert {Path(path).name for path in filesystem.ls(path, detail=False)} == {"checkpoint-12", "journal.jsonl"}


def test_checkpoint_of_this_machine_is_kept_when_newer(url: str, progress: Path) -> None:
    save_progress(progress, FINGERPRINT, 0)
    write(progress / "checkpoints" / "checkpoint-12", "step 12")
    (progress / "journal.jsonl").write_text("twelve steps")
    restore_progress(progress, FINGERPRINT)
    assert (progress / "journal.jsonl").read_text() == "twelve steps"


def test_checkpoint_uploaded_in_part_is_ignored(url: str, progress: Path, tmp_path: Path) -> None:
    save_progress(progress, FINGERPRINT, 0)
    rewrite(f"{url}/runs/{FINGERPRINT[:16]}/checkpoint-10", MANIFEST, None)
    restore_progress(tmp_path / "there" / "run", FINGERPRINT)
    assert not (tmp_path / "there" / "run").exists()


def test_checkpoint_stays_local_without_a_store(progress: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(artifact_store.VARIABLE, raising=False)
    assert save_progress(progress, FINGERPRINT, 0) == 0
    shutil.rmtree(progress)
    restore_progress(progress, FINGERPRINT)
    assert not progress.exists()


def test_store_check_passes_and_leaves_no_file(url: str) -> None:
    assert store_problems(needed=True) == []
    filesystem, path = fsspec.core.url_to_fs(url)
    assert filesystem.find(path) == []


@pytest.mark.parametrize("wrong", ["file:///proc/none", "nosuch://place", "/dev/null"])
def test_store_check_names_an_unwritable_store_and_why(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(artifact_store.VARIABLE, wrong)
    (problem,) = store_problems(needed=False)
    assert problem.startswith(f"{artifact_store.VARIABLE}: cannot write to {wrong!r}: ")


def test_store_check_reports_errors_of_the_stores_client(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(fsspec.core.url_to_fs(url)[0]), "pipe_file", unreachable)
    (problem,) = store_problems(needed=False)
    assert ": EndpointConnectionError: could not connect; set it to " in problem


def test_store_raises_os_error_for_its_clients_errors(
    url: str, folder: Path, progress: Path, there: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = publish(folder)
    shutil.rmtree(folder)
    filesystem = type(fsspec.core.url_to_fs(url)[0])
    for method in ("put_file", "get_file", "info", "ls"):
        monkeypatch.setattr(filesystem, method, unreachable)
    for action in (
        lambda: publish(progress / "checkpoints" / "checkpoint-2"),
        lambda: open_folder(ref, there),
        lambda: save_progress(progress, FINGERPRINT, 0),
        lambda: restore_progress(progress, FINGERPRINT),
    ):
        with pytest.raises(OSError, match="EndpointConnectionError: could not connect"):
            action()


@pytest.mark.parametrize("method", ["ls", "info", "find"])
def test_store_that_fails_to_list_is_not_an_empty_one(
    method: str, url: str, progress: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsspec's own ``glob``, ``find`` and ``exists`` leave out what they fail to list."""
    save_progress(progress, FINGERPRINT, 0)
    filesystem = type(fsspec.core.url_to_fs(url)[0])

    def fail(*_: object, **__: object) -> list[str]:
        if method == "find":
            return []
        raise ConnectionResetError("hung up")

    monkeypatch.setattr(filesystem, method, fail)
    with pytest.raises(OSError, match="hung up" if method != "find" else "could be listed"):
        restore_progress(tmp_path / "there" / "run", FINGERPRINT)
    assert latest_complete_checkpoint(tmp_path / "there" / "run" / "checkpoints") is None


@pytest.mark.parametrize("error", [ValueError("unknown protocol"), ImportError("install s3fs"), PermissionError("no")])
def test_store_passes_fsspecs_own_errors(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, client_errors_as_os_errors():
        raise error
    assert caught.value is error


def test_store_check_requires_a_store_only_when_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(artifact_store.VARIABLE, raising=False)
    assert store_problems(needed=False) == []
    assert artifact_store.VARIABLE in store_problems(needed=True)[0]
