"""Folders that travel through a store arrive whole, or are missed by name."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec import AbstractFileSystem
from prefect.logging import disable_run_logger

from tasks import artifact_store
from tasks.artifact_store import open_folder, publish, restore_progress, save_progress, store_problems
from tasks.refs import FolderRef
from training_core.config import RunConfig
from training_core.folders import MANIFEST, seal, seal_digest
from training_core.training.checkpoints import latest_complete_checkpoint

IDENTITY = "i" * 64


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store, once on disk and once of a kind that knows no paths of this machine."""
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


def write(folder: Path, content: str) -> None:
    (folder / "inner").mkdir(parents=True)
    (folder / "a.bin").write_text(content)
    (folder / "inner" / "b.bin").write_text(content)
    seal(folder)


def rewrite(url: str, name: str, content: bytes | None) -> None:
    files, place = fsspec.core.url_to_fs(f"{url}/{name}")
    if content is None:
        files.rm_file(place)
    else:
        files.pipe_file(place, content)


def test_a_folder_that_was_published_is_opened_on_another_machine(url: str, folder: Path, there: RunConfig) -> None:
    ref = publish(folder)
    assert publish(folder) == ref
    opened = open_folder(ref, there)
    assert opened.is_relative_to(there.output_dir)
    assert seal_digest(opened) == ref.digest
    assert (opened / "inner" / "b.bin").read_text() == "weights"


def test_a_folder_is_opened_where_it_was_made_without_the_store(folder: Path) -> None:
    assert open_folder(publish(folder), RunConfig(output_dir=str(folder.parent))) == folder


def test_a_fetched_folder_that_is_damaged_is_fetched_again(url: str, folder: Path, there: RunConfig) -> None:
    ref = publish(folder)
    (open_folder(ref, there) / "a.bin").write_text("damaged")
    assert (open_folder(ref, there) / "a.bin").read_text() == "weights"


@pytest.mark.parametrize("name", ["a.bin", "inner/b.bin"])
@pytest.mark.parametrize("content", [b"other", None], ids=["changed", "missing"])
def test_a_folder_damaged_in_the_store_is_rejected(
    name: str, content: bytes | None, url: str, folder: Path, there: RunConfig
) -> None:
    ref = publish(folder)
    rewrite(str(ref.url), name, content)
    with pytest.raises(FileNotFoundError, match="does not hold the folder"):
        open_folder(ref, there)


def test_a_half_uploaded_folder_is_rejected_and_completed_by_publishing_again(
    url: str, folder: Path, there: RunConfig
) -> None:
    ref = publish(folder)
    rewrite(str(ref.url), MANIFEST, None)  # it is written last
    with pytest.raises(FileNotFoundError, match="not complete"):
        open_folder(ref, there)
    publish(folder)
    assert open_folder(ref, there)


def test_an_upload_that_broke_off_is_rejected_and_completed_by_publishing_again(
    url: str, folder: Path, there: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, _ = fsspec.core.url_to_fs(url)
    put_file = type(files).put_file

    def break_off(files: AbstractFileSystem, source: str, target: str) -> None:
        if source.endswith("b.bin"):
            raise ConnectionError
        put_file(files, source, target)

    with monkeypatch.context() as connection, pytest.raises(ConnectionError):
        connection.setattr(type(files), "put_file", break_off)
        publish(folder)
    ref = publish(folder)
    assert (open_folder(ref, there) / "inner" / "b.bin").read_text() == "weights"


def test_an_incomplete_folder_is_not_published(url: str, folder: Path) -> None:
    (folder / "a.bin").unlink()
    with pytest.raises(FileNotFoundError, match="incomplete or damaged"):
        publish(folder)


def test_without_a_store_a_folder_is_missed_elsewhere_with_what_to_do(
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


@pytest.fixture(autouse=True)
def _outside_of_runs() -> Iterator[None]:
    with disable_run_logger():
        yield


def test_a_training_goes_on_elsewhere_from_the_newest_checkpoint(url: str, progress: Path, tmp_path: Path) -> None:
    assert save_progress(progress, IDENTITY, 0) == 10
    assert save_progress(progress, IDENTITY, 10) == 10
    elsewhere = tmp_path / "there" / "run"
    restore_progress(elsewhere, IDENTITY)
    latest = latest_complete_checkpoint(elsewhere / "checkpoints")
    assert latest and (latest.name, (latest / "a.bin").read_text()) == ("checkpoint-10", "step 10")
    assert (elsewhere / "journal.jsonl").read_text() == "ten steps"


def test_the_store_keeps_the_newest_checkpoint_only(url: str, progress: Path) -> None:
    save_progress(progress, IDENTITY, 0)
    write(progress / "checkpoints" / "checkpoint-12", "step 12")
    assert save_progress(progress, IDENTITY, 10) == 12
    files, place = fsspec.core.url_to_fs(f"{url}/runs/{IDENTITY[:16]}")
    assert {Path(path).name for path in files.ls(place, detail=False)} == {"checkpoint-12", "journal.jsonl"}


def test_progress_of_this_machine_is_not_replaced_by_older_one(url: str, progress: Path) -> None:
    save_progress(progress, IDENTITY, 0)
    write(progress / "checkpoints" / "checkpoint-12", "step 12")
    (progress / "journal.jsonl").write_text("twelve steps")
    restore_progress(progress, IDENTITY)
    assert (progress / "journal.jsonl").read_text() == "twelve steps"


def test_a_half_uploaded_checkpoint_does_not_count(url: str, progress: Path, tmp_path: Path) -> None:
    save_progress(progress, IDENTITY, 0)
    rewrite(f"{url}/runs/{IDENTITY[:16]}/checkpoint-10", MANIFEST, None)
    restore_progress(tmp_path / "there" / "run", IDENTITY)
    assert not (tmp_path / "there" / "run").exists()


def test_without_a_store_progress_stays_where_it_is(progress: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(artifact_store.VARIABLE, raising=False)
    assert save_progress(progress, IDENTITY, 0) == 0
    shutil.rmtree(progress)
    restore_progress(progress, IDENTITY)
    assert not progress.exists()


def test_a_store_that_takes_files_has_no_problem_and_keeps_none(url: str) -> None:
    assert store_problems(needed=True) == []
    files, place = fsspec.core.url_to_fs(url)
    assert files.find(place) == []


@pytest.mark.parametrize("wrong", ["file:///proc/none", "nosuch://place", "/dev/null"])
def test_a_store_that_cannot_be_written_is_named_with_the_reason(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(artifact_store.VARIABLE, wrong)
    (problem,) = store_problems(needed=False)
    assert problem.startswith(f"{artifact_store.VARIABLE}: {wrong!r} cannot be written")


def test_a_store_that_fails_in_a_way_of_its_own_is_named_with_the_reason(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class EndpointConnectionError(Exception):
        """As botocore's and aiohttp's errors are: no ``OSError``."""

    def reject(*_: object) -> None:
        raise EndpointConnectionError("nobody listens")

    monkeypatch.setattr(type(fsspec.core.url_to_fs(url)[0]), "pipe_file", reject)
    (problem,) = store_problems(needed=False)
    assert "cannot be written: EndpointConnectionError: nobody listens; " in problem


def test_a_missing_store_is_a_problem_only_where_folders_have_to_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(artifact_store.VARIABLE, raising=False)
    assert store_problems(needed=False) == []
    assert artifact_store.VARIABLE in store_problems(needed=True)[0]
