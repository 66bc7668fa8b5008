"""Child processes that end when their parent does, however the parent ends, SIGKILL included."""

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

POLL_SECONDS = 1
SECONDS_TO_END = 60  # after SIGTERM, for a child whose parent is gone

_PARENT = "SFT_FLOW_PARENT_PROCESS"  # the process id that a child watches


@contextlib.contextmanager
def child_process(
    command: Sequence[str],
    environment: Mapping[str, str | None] | None = None,
    folder: Path | None = None,
    *,
    stdin: int | None = None,
    output: int | None = None,
    seconds_to_end: float = 10,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python module and its arguments in ``folder`` until the body ends or this process does.

    At the end of the body the child gets SIGTERM, and SIGKILL when it is still running after ``seconds_to_end``. When
    this process ends first, the child sends itself SIGTERM within ``POLL_SECONDS``, SIGKILL ``SECONDS_TO_END`` later.
    What the child starts as ``python -m training_core.child_processes MODULE …`` watches the child alike. A variable of
    ``environment`` that is ``None`` is unset. ``stdin`` is a file descriptor, such as that of a socket. ``output``,
    such as ``subprocess.PIPE``, gets standard output and standard error; without it they are this process's.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "training_core.child_processes", *command],
        env=_environment(environment or {}),
        cwd=folder,
        start_new_session=True,  # a terminal sends Ctrl-C to all of its session, and a server must not end first
        stdin=stdin,
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(seconds_to_end)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    # A flows/ or tasks.py in the working directory must not take the place of ours.
    found = {**os.environ, "PYTHONSAFEPATH": "1", **changes, _PARENT: str(os.getpid())}
    return {name: value for name, value in found.items() if value is not None}


def _end_with(parent: int) -> None:
    # Polling works on every Unix and from any thread; Linux's PR_SET_PDEATHSIG fires when the parent's thread ends.
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SECONDS_TO_END)
    os.kill(os.getpid(), signal.SIGKILL)  # one that hangs would keep its GPU, its port or its lock for ever


def main() -> None:
    """Run a Python module as ``python -m MODULE ARGUMENTS`` does, as long as the parent process runs."""
    parent = int(os.environ[_PARENT])
    os.environ[_PARENT] = str(os.getpid())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts jobs with & makes them ignore it
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
