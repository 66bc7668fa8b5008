"""A folder that cannot be written to ends a run with one sentence, before it starts or after it failed for that."""

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.output_folder import writable_folder
from flows.short_logs import OneLine
from training_core.config import SettingsError

# A limit on the size of files stands for a full disk: it needs no rights, and is lowered while the run writes.
FILL = """
import resource, sys
from pathlib import Path
from flows.output_folder import writable_folder
with writable_folder(Path(sys.argv[1])):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    raise RuntimeError("(sqlite3.OperationalError) something else")
"""


def test_folder_on_a_full_disk_ends_in_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FILL, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 74, found.stderr
    (line,) = found.stderr.splitlines()
    assert line.startswith(f"output_dir: cannot write to '{tmp_path}': File too large; free space")
    assert line.endswith("then the same command resumes.")


@pytest.mark.parametrize("error", [FileNotFoundError("journal.jsonl"), SettingsError(["config: expected a file"])])
def test_folder_deleted_while_a_run_uses_it_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    folder = tmp_path / "runs"
    with pytest.raises(SystemExit) as ended, writable_folder(folder):
        folder.rmdir()
        raise error
    assert ended.value.code == 74
    assert "it was deleted or moved; put it back" in capsys.readouterr().err


def test_folder_that_cannot_be_made_is_rejected_with_a_fix(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in ("file", "file/runs"):
        with (
            pytest.raises(SettingsError, match=r"expected a folder in .*, found a file; move it away, or choose"),
            writable_folder(tmp_path / folder),
        ):
            pass
    with (
        pytest.raises(SettingsError, match="it cannot be created; choose"),
        writable_folder(Path("/proc/runs")),
    ):
        pass


def test_folder_moved_while_a_run_uses_it_is_named_though_something_made_the_path_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs"
    with pytest.raises(SystemExit) as ended, writable_folder(folder):
        folder.rename(tmp_path / "elsewhere")
        folder.mkdir()
        raise ValueError("Can't find 'adapter_config.json'")
    assert ended.value.code == 74
    assert "what is there now was made since; put the old folder in its place" in capsys.readouterr().err


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir], ids=["file", "folder"])
def test_thing_in_the_way_within_the_folder_is_named(
    tmp_path: Path, make: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    make(place := tmp_path / "journal.jsonl")
    with pytest.raises(SystemExit) as ended, writable_folder(tmp_path):
        place.open("a") if place.is_dir() else (place / "x").mkdir()
    assert ended.value.code == 74
    (line,) = capsys.readouterr().err.splitlines()
    assert str(place) in line
    assert "move away what is there" in line


def test_file_deleted_while_a_run_uses_it_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What deletes the whole folder may find that something, such as a server, has made it again."""
    with pytest.raises(SystemExit) as ended, writable_folder(tmp_path):
        (tmp_path / "run" / "journal.jsonl").open("a")
    assert ended.value.code == 74
    assert "journal.jsonl' was deleted or moved while the run used it" in capsys.readouterr().err


def test_thing_in_the_way_elsewhere_is_kept(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises(IsADirectoryError), writable_folder(tmp_path / "runs"):
        tmp_path.open("a")


def test_error_that_is_not_of_the_folder_is_kept(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug"), writable_folder(tmp_path):
        raise RuntimeError("a bug")


def test_error_of_our_own_after_a_handled_one_is_kept(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug"), writable_folder(tmp_path):
        try:
            (tmp_path / "journal.jsonl").open()
        except FileNotFoundError:
            raise RuntimeError("a bug")  # noqa: B904  # what was handled is no reason


def test_file_deleted_is_named_though_a_library_words_it_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit), writable_folder(tmp_path):
        try:
            (tmp_path / "journal.jsonl").open()
        except FileNotFoundError as error:
            raise RuntimeError("cannot load") from error
    assert "journal.jsonl' was deleted or moved while the run used it" in capsys.readouterr().err


def test_log_in_the_terminal_has_no_tracebacks() -> None:
    try:
        raise RuntimeError("a bug")
    except RuntimeError:
        record = logging.LogRecord("prefect", logging.ERROR, "", 0, "Encountered %r", ("it",), sys.exc_info())
    assert OneLine(logging.Formatter("%(message)s")).format(record) == "Encountered 'it'"
    of_mlflow = logging.LogRecord("mlflow", logging.ERROR, "", 0, "Caught.\n%s", ("[SQL: …]\n",), sys.exc_info())
    assert OneLine(logging.Formatter("%(message)s")).format(of_mlflow) == "Caught."
    assert "Traceback" in logging.Formatter("%(message)s").format(record), "other handlers keep it"
