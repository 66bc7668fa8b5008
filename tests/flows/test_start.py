"""The command starts with its own modules, and Ctrl-C ends it at any moment without a traceback."""

import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_command_starts_here() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"]["sft-flow"] == "flows.start:main"


@pytest.mark.parametrize("name", ["tasks.py", "samples.py", "training_core/__init__.py", "tasks/note.txt"])
def test_module_that_stands_in_for_ours_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    start = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import flows.start; "
        f"sys.path.insert(0, {str(tmp_path)!r}); flows.start.main()"
    )
    command = [sys.executable, "-P", "-c", start, "--help"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if name.endswith(".txt"):
        assert found.returncode == 0, "a folder without code does not come before a package"
        return
    assert found.returncode == 2
    assert len(found.stderr.splitlines()) == 1
    assert f"found {tmp_path / name}; take its folder out of PYTHONPATH" in found.stderr


def test_interrupt_before_the_command_is_imported_ends_it_quietly() -> None:
    wait = "import flows.start; flows.start.shadowed = lambda: print(flush=True) or __import__('time').sleep(60)"
    command = [
        sys.executable,
        "-c",
        f"import signal; signal.signal(2, signal.default_int_handler); {wait}; flows.start.main()",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True) as process:
        assert process.stdout and process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 130
