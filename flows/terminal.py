"""How the command ends: one exit code for each kind of end, on any terminal, into any pipe."""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from training_core.escaping import shown

CRASHED, CANNOT_WRITE = 70, 74  # EX_SOFTWARE and EX_IOERR of sysexits.h
INTERRUPTED = 128 + signal.SIGINT  # as a shell reports a command that a signal has ended

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

HOW_TO_RESUME = "Interrupted. The same command resumes from the last checkpoint.\n"


def run_command(command: Callable[[], None]) -> None:
    """Run a command to its end, and end the process with an exit code that says how.

    What the terminal's encoding lacks is replaced. A closed pipe ends the command quietly. An error that nobody
    expected shows its traceback, with an exit code that no verdict has.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    sys.excepthook = _end_after_a_crash
    try:
        try:
            command()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stderr.write(HOW_TO_RESUME)
        _end(INTERRUPTED)
    except BrokenPipeError:
        _end(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.stderr.write("No space is left on the disk. Free some; the same command resumes.\n")
        _end(CANNOT_WRITE)


def print_line(text: str, style: str = "") -> None:
    """Print a line that may hold names and messages from elsewhere: none changes the terminal or shows a password."""
    console.print(Text(shown(text), style), soft_wrap=True)


def complain(text: str) -> None:
    """The same on standard error."""
    sys.stderr.write(f"{shown(text)}\n")


def report_line(text: str) -> None:
    """The same above a progress bar on standard error."""
    errors.print(Text(shown(text)), soft_wrap=True)


def _end_after_a_crash(*error: object) -> None:
    complain("".join(traceback.format_exception(*error)).rstrip())  # type: ignore[call-overload]
    _end(CRASHED)


def _end(code: int) -> None:
    """End the process. What standard output could not take is given up, or Python would complain at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
