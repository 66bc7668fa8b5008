"""How the command ends: one exit code for each kind of end, on any terminal, into any pipe."""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.text import Text

from training_core.escaping import shown

CRASHED, CANNOT_WRITE = 70, 74  # EX_SOFTWARE and EX_IOERR of sysexits.h
INTERRUPTED = 128 + signal.SIGINT  # as a shell reports a command that a signal has ended

_FEWEST_COLUMNS, _USUAL_COLUMNS = 20, 80


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich would end with 1, which means that rows are not fit; ``run_command`` ends as other commands do."""
        raise BrokenPipeError


console = _Console(highlight=False)
errors = _Console(stderr=True, highlight=False)

HOW_TO_RESUME = "Interrupted. The same command resumes from the last checkpoint."


def run_command(command: Callable[[], None]) -> None:
    """Run a command to its end, and end the process with an exit code that says how.

    What the terminal's encoding lacks is replaced. A closed pipe ends the command quietly. An error that nobody
    expected shows its traceback, with an exit code that no verdict has.
    """
    _prepare_streams()
    sys.excepthook = _end_after_a_crash
    try:
        try:
            command()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        complain(HOW_TO_RESUME)
        _end(INTERRUPTED)
    except BrokenPipeError:
        _end(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        complain("No space is left on the disk. Free some; the same command resumes.")
        _end(CANNOT_WRITE)


def _prepare_streams() -> None:
    """Streams that a shell has closed (``>&-``) take what is written, and a terminal without a width has the usual."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  it is open to the end
        getattr(sys, name).reconfigure(errors="replace")
    for terminal in (console, errors):
        if terminal.width < _FEWEST_COLUMNS:
            terminal.width = _USUAL_COLUMNS


def print_line(text: str, style: str = "") -> None:
    """Print a line that may hold names and messages from elsewhere: none changes the terminal or shows a password."""
    console.print(Text(shown(text), style), soft_wrap=True)


def complain(text: str) -> None:
    """The same on standard error; where that is full or closed, the exit code alone says it."""
    try:
        sys.stderr.write(f"{shown(text)}\n")
        sys.stderr.flush()
    except OSError:
        _give_up(sys.stderr)


def report_line(text: str) -> None:
    """The same above a progress bar on standard error."""
    errors.print(Text(shown(text)), soft_wrap=True)


def _end_after_a_crash(*error: object) -> None:
    complain("".join(traceback.format_exception(*error)).rstrip())  # type: ignore[call-overload]
    _end(CRASHED)


def _end(code: int) -> None:
    """End the process. What standard output could not take is given up, or Python would complain at exit."""
    _give_up(sys.stdout)
    sys.exit(code)


def _give_up(stream: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
