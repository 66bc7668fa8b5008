"""A child process ends when its parent does, however the parent ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from training_core.child_processes import child_process

pytestmark = pytest.mark.slow

WAIT = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with modules that children run."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    (tmp_path / "report.py").write_text("import os, sys; print(sys.argv, os.environ['GREETING'], __name__)")
    (tmp_path / "wait.py").write_text(WAIT)
    (tmp_path / "stubborn.py").write_text(f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {WAIT}")
    (tmp_path / "nested.py").write_text(
        "import subprocess, sys\n"
        "subprocess.run([sys.executable, '-m', 'training_core.child_processes', 'wait', 'grandchild'])"
    )
    (tmp_path / "parent.py").write_text(
        "import contextlib, pathlib\n"
        "from training_core.child_processes import child_process\n"
        "with child_process(['nested']) as process:\n"
        "    process.wait()"
    )
    return tmp_path


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.02)


def test_child_process_runs_a_module_with_its_arguments(modules: Path) -> None:
    with child_process(["report", "a", "b c"], {"GREETING": "hi"}, modules, output=subprocess.PIPE) as process:
        assert process.stdout
        printed = process.stdout.read().decode()
        assert process.wait() == 0
    assert printed == f"{[str(modules / 'report.py'), 'a', 'b c']} hi __main__\n"


@pytest.mark.parametrize(("module", "exit_code"), [("wait", -15), ("stubborn", -9)])
def test_child_process_ends_with_the_body(modules: Path, module: str, exit_code: int) -> None:
    with child_process([module, "started"], folder=modules, seconds_to_end=1) as process:
        wait_for(modules / "started")
    assert process.returncode == exit_code


@pytest.mark.parametrize("victim", ["parent", "child"])
def test_child_processes_end_with_a_killed_parent(modules: Path, victim: str) -> None:
    """The grandchild watches the child, so that a killed child leaves nothing running either."""
    parent = psutil.Popen([sys.executable, "-m", "parent"], cwd=modules)
    wait_for(modules / "grandchild")
    (child,) = parent.children()
    below = child.children()
    assert len(below) == 1
    {"parent": parent, "child": child}[victim].kill()
    parent.wait(timeout=60)
    assert not psutil.wait_procs([child, *below], timeout=60)[1]


def test_child_process_does_not_search_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "training_core").mkdir()
    (tmp_path / "training_core" / "__init__.py").write_text("raise SystemExit('a stranger')")
    (tmp_path / "json.py").write_text("raise SystemExit('a stranger')")
    with child_process(["json.tool", "--help"], folder=tmp_path, output=subprocess.PIPE) as process:
        assert process.stdout
        assert b"stranger" not in process.stdout.read()
        assert process.wait() == 0


def test_signals_of_a_terminal_do_not_reach_child_processes(modules: Path) -> None:
    """Ctrl-C goes to the whole session of a terminal: a server that ended first would fail the run that uses it."""
    with child_process(["wait", "started"], folder=modules) as process:
        wait_for(modules / "started")
        assert os.getsid(process.pid) != os.getsid(0)
        assert os.getpgid(process.pid) != os.getpgid(0)


def test_child_process_that_hangs_ends_with_a_killed_parent() -> None:
    """It ignores SIGTERM, as one does that waits inside a GPU's library."""
    code = (
        "import signal\n"
        "from training_core import child_processes\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child_processes.SECONDS_TO_END = 0.1\n"
        "child_processes._end_with(0)  # no process has this parent"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == -signal.SIGKILL
