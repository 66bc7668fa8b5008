"""Runs a training program and says when its first optimiser step begins: ``python -m benchmarks.first_step PROGRAM …``.

PROGRAM is a file or a module; what follows are its own arguments.
"""

import runpy
import sys
from typing import Any

from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

ANNOUNCEMENT = "The first step begins"


class AnnounceFirstStep(TrainerCallback):
    """Prints one line when a trainer has done everything that comes before training."""

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        print(ANNOUNCEMENT, flush=True)  # noqa: T201


def main() -> None:
    """Every trainer that the program creates gets the callback, whoever creates it."""
    DEFAULT_CALLBACKS.append(AnnounceFirstStep)
    del sys.argv[0]
    if sys.argv[0].endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
