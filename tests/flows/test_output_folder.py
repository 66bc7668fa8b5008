"""A folder that cannot be written to ends a run with one sentence, before it starts or after it failed for that."""

import logging
import subprocess
import sys
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


def test_folder_deleted_while_a_run_uses_it_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs"
    with pytest.raises(SystemExit) as ended, writable_folder(folder):
        folder.rmdir()
        raise FileNotFoundError("journal.jsonl")
    assert ended.value.code == 74
    assert "it was deleted or moved; put it back" in capsys.readouterr().err


def test_folder_that_cannot_be_made_is_rejected_with_a_fix(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, fix in (("file", "File exists; free space, or allow"), ("file/runs", "Not a directory; free space")):
        with pytest.raises(SettingsError, match=fix), writable_folder(tmp_path / folder):
            pass
    with (
        pytest.raises(SettingsError, match="it cannot be created; choose"),
        writable_folder(Path("/proc/runs")),
    ):
        pass


def test_error_that_is_not_of_the_folder_is_kept(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug"), writable_folder(tmp_path):
        raise RuntimeError("a bug")


def test_log_in_the_terminal_has_no_tracebacks() -> None:
    try:
        raise RuntimeError("a bug")
    except RuntimeError:
        record = logging.LogRecord("prefect", logging.ERROR, "", 0, "Encountered %r", ("it",), sys.exc_info())
    assert OneLine(logging.Formatter("%(message)s")).format(record) == "Encountered 'it'"
    of_mlflow = logging.LogRecord("mlflow", logging.ERROR, "", 0, "Caught.\n%s", ("[SQL: …]\n",), sys.exc_info())
    assert OneLine(logging.Formatter("%(message)s")).format(of_mlflow) == "Caught."
    assert "Traceback" in logging.Formatter("%(message)s").format(record), "other handlers keep it"
