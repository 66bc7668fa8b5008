"""The first lines of the `sft-flow` command, before anything heavy is imported: Ctrl-C ends it without a traceback, and
a file that Python would import in place of one of our packages is named."""

import importlib.util
import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = ("training_core", "tasks", "flows", "samples")


def main() -> None:
    """Run the command; see ``flows.cli.main``."""
    before = signal.signal(signal.SIGINT, _end)
    if problem := shadowed():
        sys.stderr.write(f"{problem}\n")
        sys.exit(2)
    from flows.cli import main as run

    signal.signal(signal.SIGINT, before)
    run()


def shadowed() -> str:
    """Which of our packages another file would be imported for, as with PYTHONPATH set to a folder that has a tasks.py;
    empty where there is none."""
    for name in ROOMS:
        found = importlib.util.find_spec(name)
        if found is None or found.origin != str(ROOT / name / "__init__.py"):
            place = found.origin if found else None
            return (
                f"expected the package {name} of sft-flow in {ROOT}, found {place}; take its folder out of PYTHONPATH"
            )
    return ""


def _end(*_: object) -> None:
    os._exit(128 + signal.SIGINT)
