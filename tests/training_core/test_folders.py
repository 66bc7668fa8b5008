"""Folders and files are written completely or not at all, and damage is detected."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from training_core.folders import MANIFEST, complete_file, complete_folder, seal, seal_digest

DAMAGED_MANIFESTS = [b"", b'{"weights.bin"', b"\x00" * 300, b"\xff\xfe", b"[]", b"null", b'{"empty": 1}']


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "weights.bin").write_bytes(bytes(range(256)))
    (folder / "sub" / "state.json").write_text("{}")
    (folder / "empty").touch()
    seal(folder)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from training_core import folders
with getattr(folders, sys.argv[1])(Path(sys.argv[2])) as draft:
    (draft / "half" if draft.is_dir() else draft).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_while_writing(writer: str, path: Path) -> None:
    """Run ``complete_folder`` or ``complete_file`` in a process that is killed inside the body."""
    found = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, writer, str(path)], check=False)
    assert found.returncode == -signal.SIGKILL


# seal and seal_digest


def test_seal_digest_is_the_digest_that_seal_returned(sealed: Path) -> None:
    assert seal_digest(sealed) == seal(sealed) == seal_digest(sealed)


def test_seal_digest_depends_on_content_and_names_only(sealed: Path, tmp_path: Path) -> None:
    shutil.copytree(sealed, tmp_path / "copy")
    assert seal_digest(tmp_path / "copy") == seal_digest(sealed)
    (tmp_path / "copy" / "weights.bin").rename(tmp_path / "copy" / "other.bin")
    assert seal(tmp_path / "copy") != seal_digest(sealed)


@pytest.mark.parametrize("name", ["weights.bin", "sub/state.json", "empty", MANIFEST])
def test_seal_digest_is_none_when_a_file_is_missing(sealed: Path, name: str) -> None:
    (sealed / name).unlink()
    assert seal_digest(sealed) is None


@pytest.mark.parametrize("name", ["weights.bin", "sub/state.json", "empty"])
@pytest.mark.parametrize("content", [b"", b"{} ", b"\x00" * 256])
def test_seal_digest_is_none_when_a_file_changed(sealed: Path, name: str, content: bytes) -> None:
    before = (sealed / name).read_bytes()
    (sealed / name).write_bytes(content)
    assert (seal_digest(sealed) is None) == (content != before)


def test_seal_digest_is_none_after_one_changed_bit(sealed: Path) -> None:
    (sealed / "weights.bin").write_bytes(bytes([*range(255), 254]))
    assert seal_digest(sealed) is None


@pytest.mark.parametrize("content", DAMAGED_MANIFESTS)
def test_seal_digest_is_none_when_the_manifest_is_damaged(sealed: Path, content: bytes) -> None:
    """A power failure can leave a file of the right size full of zeros."""
    (sealed / MANIFEST).write_bytes(content)
    assert seal_digest(sealed) is None


def test_seal_digest_is_none_for_unsealed_paths(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert seal_digest(tmp_path / "file") is None
    assert seal_digest(tmp_path / "nowhere") is None
    assert seal_digest(tmp_path) is None


def test_seal_ignores_and_removes_a_draft_manifest(sealed: Path) -> None:
    (sealed / MANIFEST).rename(sealed / f"{MANIFEST}.draft")
    assert seal_digest(sealed) is None
    assert seal(sealed)
    assert not (sealed / f"{MANIFEST}.draft").exists()


# complete_folder


def test_complete_folder_appears_sealed_when_the_body_ends(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "folder"
    with complete_folder(folder) as draft:
        (draft / "a").write_text("new")
        assert not folder.exists()
    assert seal_digest(folder)
    assert names(folder) == ["a", MANIFEST]
    assert names(folder.parent) == ["folder"]


def test_complete_folder_replaces_the_old_content(sealed: Path) -> None:
    with complete_folder(sealed) as draft:
        assert names(draft) == []
        (draft / "a").write_text("new")
    assert names(sealed) == ["a", MANIFEST]


def test_complete_folder_keeps_a_manifest_from_the_body(sealed: Path, tmp_path: Path) -> None:
    before = seal_digest(sealed)
    with complete_folder(tmp_path / "copy", seal_it=False) as draft:
        assert not (draft / MANIFEST).exists()
        shutil.copytree(sealed, draft, dirs_exist_ok=True)
    assert seal_digest(tmp_path / "copy") == before
    with complete_folder(tmp_path / "unsealed", seal_it=False) as draft:
        (draft / "a").touch()
    assert seal_digest(tmp_path / "unsealed") is None


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_complete_folder_is_unchanged_when_the_body_raises(sealed: Path, error: type[BaseException]) -> None:
    before = seal_digest(sealed)
    with pytest.raises(error), complete_folder(sealed) as draft:
        (draft / "half").touch()
        raise error
    assert before and seal_digest(sealed) == before
    assert names(sealed.parent) == ["folder"]


@pytest.mark.parametrize("name", ["folder", "folder.draft"])
def test_complete_folder_takes_the_place_of_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("in the way")
    with complete_folder(tmp_path / "folder") as draft:
        (draft / "new").touch()
    assert seal_digest(tmp_path / "folder")
    assert not (tmp_path / "folder.draft").exists()


def test_complete_folder_takes_the_place_of_a_link_and_leaves_its_target(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "kept").touch()
    (tmp_path / "folder").symlink_to(tmp_path / "target")
    with complete_folder(tmp_path / "folder") as draft:
        (draft / "new").touch()
    assert (tmp_path / "target" / "kept").exists()
    assert not (tmp_path / "folder").is_symlink()


def test_complete_file_replaces_a_folder_in_the_place_of_its_draft(tmp_path: Path) -> None:
    (tmp_path / "file.draft").mkdir()
    with complete_file(tmp_path / "file") as draft:
        draft.write_text("new")
    assert (tmp_path / "file").read_text() == "new"


def test_complete_folder_deletes_the_draft_of_a_killed_process(sealed: Path) -> None:
    before = seal_digest(sealed)
    kill_while_writing("complete_folder", sealed)
    assert names(sealed.parent) == ["folder", "folder.draft"]
    assert seal_digest(sealed) == before and seal_digest(sealed.parent / "folder.draft") is None
    with complete_folder(sealed) as draft:
        assert names(draft) == []
        (draft / "a").touch()
    assert names(sealed.parent) == ["folder"]
    assert names(sealed) == ["a", MANIFEST]


# complete_file


def test_complete_file_replaces_the_whole_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("a long old content")
    with complete_file(path) as draft:
        draft.write_text("new")
        assert path.read_text() == "a long old content"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_complete_file_is_unchanged_when_the_body_raises(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error), complete_file(path) as draft:
        draft.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_complete_file_without_a_body_that_writes_raises(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), complete_file(path):
        pass
    assert path.read_text() == "old"


def test_complete_file_deletes_the_draft_of_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    kill_while_writing("complete_file", path)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file", "file.draft"]
    with complete_file(path) as draft:
        assert not draft.exists()
        draft.write_text("new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file"]
