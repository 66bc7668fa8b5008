"""Whatever the terminal can show and wherever output goes, a command ends with one clear message and its own code."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

HELP = [sys.executable, "-c", "from flows.cli import main; main()", "--help"]
COMMAND = "import sys; from flows.terminal import run_command\ndef command():\n    {}\nrun_command(command)"


def call(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", COMMAND.format(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252", "utf-8"])
def test_characters_that_the_terminal_lacks_are_replaced(encoding: str) -> None:
    found = subprocess.run(
        HELP, env=os.environ | {"PYTHONIOENCODING": encoding}, capture_output=True, timeout=120, check=False
    )
    assert (found.returncode, found.stderr) == (0, b"")
    assert b"sft-flow check" in found.stdout


def test_closed_pipe_ends_the_command_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", COMMAND.format("print('x' * 100_000)")]
    found = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=120, check=False)
    os.close(writing)
    assert (found.returncode, found.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.parametrize("code", ["print('x')", "print('x'); sys.exit(0)", "print('x' * 100_000)"])
def test_full_device_ends_with_one_line_and_its_code(code: str) -> None:
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-c", COMMAND.format(code)]
        found = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert found.returncode == 74
    assert found.stderr == "No space is left on the disk. Free some; the same command resumes.\n"


def test_closed_pipe_ends_tables_as_it_ends_lines() -> None:
    """Rich ends with 1 by itself, which is the verdict that rows are not fit."""
    reading, writing = os.pipe()
    os.close(reading)
    code = "from flows.terminal import console; console.print('x' * 100_000)"
    command = [sys.executable, "-c", COMMAND.format(code)]
    found = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=120, check=False)
    os.close(writing)
    assert (found.returncode, found.stderr) == (128 + signal.SIGPIPE, b"")


def test_exit_code_is_kept_where_the_message_cannot_be_written() -> None:
    with Path("/dev/full").open("wb") as full:
        code = "from flows.terminal import complain; complain('x' * 9_999); sys.exit(2)"
        command = [sys.executable, "-c", COMMAND.format(code)]
        assert subprocess.run(command, stderr=full, timeout=120, check=False).returncode == 2


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_streams_that_the_shell_has_closed_change_no_exit_code(closed: str) -> None:
    code = "from flows.terminal import complain, print_line; print_line('x'); complain('x'); sys.exit(2)"
    command = ["bash", "-c", f'exec "$0" "$@" {closed}', sys.executable, "-c", COMMAND.format(code)]
    assert subprocess.run(command, timeout=120, check=False).returncode == 2


@pytest.mark.parametrize("columns", ["0", "1", "many"])
def test_terminal_without_a_width_shows_everything(columns: str) -> None:
    code = "from flows.terminal import console; console.print('x' * 30)"
    found = call(code, env=os.environ | {"COLUMNS": columns})
    assert found.stdout == "x" * 30 + "\n"


def test_crash_shows_its_traceback_and_has_its_code() -> None:
    found = call("raise ValueError('a bug')")
    assert found.returncode == 70
    assert found.stderr.startswith("Traceback") and found.stderr.endswith("ValueError: a bug\n")


@pytest.mark.parametrize("code", [0, 1, 2])
def test_exit_code_of_a_command_is_kept(code: int) -> None:
    found = call(f"sys.exit({code})")
    assert (found.returncode, found.stdout, found.stderr) == (code, "", "")


def test_interrupted_command_says_how_to_resume() -> None:
    found = call("raise KeyboardInterrupt")
    assert found.returncode == 130
    assert found.stderr == "Interrupted. The same command resumes from the last checkpoint.\n"


@pytest.mark.slow
def test_ctrl_c_saves_a_checkpoint_and_ends_with_all_processes(
    tiny_base: Path, sample_rows: Path, tmp_path: Path
) -> None:
    """A terminal sends the signal to every process of its group."""
    settings = {
        "model_name": tiny_base, "dataset_path": sample_rows, "output_dir": tmp_path / "runs",
        "max_seq_length": 4096, "num_train_epochs": 50, "logging_steps": 1, "save_steps": 500,
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2,
    }  # fmt: skip
    arguments = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    run = subprocess.Popen(
        [*HELP[:-1], "run", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    while not any(path.stat().st_size > 500 for path in (tmp_path / "runs").glob("*/journal.jsonl")):
        assert run.poll() is None, run.communicate()[0].decode()
        time.sleep(0.2)
    processes = psutil.Process(run.pid).children(recursive=True)
    os.killpg(run.pid, signal.SIGINT)
    printed = run.communicate(timeout=60)[0].decode()
    assert run.returncode == 130, printed
    assert "Interrupted. The same command resumes from the last checkpoint." in printed
    assert list((tmp_path / "runs").glob("*/checkpoints/checkpoint-*/manifest.json"))
    assert psutil.wait_procs(processes, timeout=20)[1] == []
