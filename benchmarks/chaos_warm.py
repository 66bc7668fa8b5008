"""Commands that are forked from a process which has imported the libraries: a kill then hits the run, not its imports.

``python -m benchmarks.chaos_warm`` reads one request a line, the arguments of ``_become`` as JSON, and writes two lines
for each: the number of the process that runs it, and its exit code once that has ended.
"""

import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

# Not Prefect, which reads the environment of its command when it is imported.
LIBRARIES = ("bitsandbytes", "datasets", "mlflow", "pandas", "peft", "scipy.stats", "sklearn", "torch", "transformers")


@dataclass
class Forked:
    """A command that runs, with those of ``subprocess.Popen``'s methods that the parts use."""

    pid: int
    replies: IO[bytes]
    returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, or ``None`` while it runs."""
        if self.returncode is None and select.select([self.replies], [], [], 0)[0]:
            self.returncode = int(self.replies.readline())
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code. Raises ``subprocess.TimeoutExpired`` when it runs longer than these seconds."""
        if self.returncode is None and not select.select([self.replies], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("a forked command", timeout or 0)
        return int(self.poll() or 0)

    def kill(self) -> None:
        """SIGKILL, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Warm:
    """The process that has imported the libraries; it runs one command at a time, and ends with its standard input."""

    process: subprocess.Popen[bytes]

    def start(self, module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Forked:
        """Run ``main`` of a module in a session of its own."""
        request = {
            "module": module,
            "arguments": list(arguments),
            "environment": dict(environment),
            "log": str(log),
        }
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        return Forked(int(self.process.stdout.readline()), self.process.stdout)


def warm_up(environment: Mapping[str, str], folder: Path) -> Warm:
    """Start it in ``folder``; libraries read this environment when they are imported."""
    command = [sys.executable, "-m", "benchmarks.chaos_warm"]
    pipe = subprocess.PIPE
    return Warm(subprocess.Popen(command, env=dict(environment), cwd=folder, bufsize=0, stdin=pipe, stdout=pipe))


def main() -> None:
    """Import, then answer requests until the standard input ends."""
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.freeze()
    for line in sys.stdin:
        process = os.fork()
        if not process:
            _become(**json.loads(line))
        _reply(process)
        _reply(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))


def _reply(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def _become(module: str, arguments: list[str], environment: dict[str, str], log: str) -> None:
    """Run ``main`` of a module with its own session, environment and output."""
    os.setsid()
    for descriptor, file in ((0, os.devnull), (1, log), (2, log)):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    sys.exit(importlib.import_module(module).main())


if __name__ == "__main__":
    main()
