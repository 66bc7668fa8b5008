"""Trains all layouts in turn on the same rows, each in a process of its own, and checks that they learnt the same."""

import os
import platform
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import by_hand, ours, with_trl
from benchmarks.measurements import BEST, BY_HAND, DOCUMENTED, NOT_SHARING, OURS, Measurements
from benchmarks.rows import Architecture, RowSet, write_base
from benchmarks.training import Job, run_alone

LAYOUTS = {
    DOCUMENTED: with_trl.as_documented,
    BEST: with_trl.at_its_best,
    BY_HAND: by_hand.train,
    NOT_SHARING: ours.not_sharing,
    OURS: ours.sharing,
}
START_ROWS = RowSet(100, 2, 2)
# Libraries read this when they are imported. Threads that wait by spinning would add their waiting to the CPU time.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
BF16_TOLERANCE, FP32_TOLERANCE = 5e-2, 1e-4


@dataclass(frozen=True)
class Plan:
    """What to measure: all layouts on the first sets of rows, only the sharing one on the others.

    A layout that shares nothing takes the same time for every row, so the second sets would tell nothing new about it.
    `starts` fresh interpreters measure the start; the other processes are forks of one that has imported everything.
    """

    all_layouts: tuple[RowSet, ...]
    only_sharing: tuple[RowSet, ...]
    repeats: int
    starts: int
    steps: int = 2
    gradient_checkpointing: bool = False

    def turns(self) -> Iterator[tuple[RowSet, str]]:
        """The trainings in turn; the slowest layout, whose ratios are large, runs in the first repeat only."""
        for repeat in range(self.repeats):
            for rows in self.all_layouts:
                yield from ((rows, layout) for layout in LAYOUTS if repeat == 0 or layout != DOCUMENTED)
            yield from ((rows, OURS) for rows in self.only_sharing)


def compare(plan: Plan, architecture: Architecture, console: Console) -> Measurements:
    """The measurements of all trainings of a plan. Save them, then pass them to ``check_losses``."""
    os.environ.update(ENVIRONMENT | QUIET)
    # A process that has initialised CUDA cannot be forked.
    warm, cold = get_context("spawn" if torch.cuda.is_available() else "forkserver"), get_context("spawn")
    warm.set_forkserver_preload([module.__name__ for module in (by_hand, ours, with_trl)])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_base(architecture, folder / "base")

        def run(layout: str, rows: RowSet, context: BaseContext) -> dict[str, Any]:
            run_dir = Path(tempfile.mkdtemp(dir=folder))
            vocabulary = architecture["vocab_size"]
            job = Job(folder / "base", rows, vocabulary, plan.steps, run_dir, plan.gradient_checkpointing)
            run = {"layout": layout, "rows": asdict(rows), **asdict(run_alone(LAYOUTS[layout], job, context))}
            console.print(f"{time.strftime('%X')} {rows.name}: {layout}, {run['row_tokens'] / run['cpu_seconds']:,.0f}")
            return run

        runs = [run(layout, rows, warm) for rows, layout in plan.turns()]
        starts = [run(layout, START_ROWS, cold) for _ in range(plan.starts) for layout in (BEST, OURS)]
    return Measurements(about(plan), runs, starts)


def check_losses(measurements: Measurements) -> None:
    """Raise ``RuntimeError`` unless all trainings on the same rows learnt the same, by their held-out loss."""
    expected: dict[tuple[int, ...], float] = {}
    for run in sorted([*measurements.runs, *measurements.starts], key=lambda run: run["layout"] != BY_HAND):
        loss = expected.setdefault(tuple(run["rows"].values()), run["held_out_loss"])
        in_bf16 = run["layout"] == DOCUMENTED or torch.cuda.is_available()
        if abs(run["held_out_loss"] - loss) > (BF16_TOLERANCE if in_bf16 else FP32_TOLERANCE):
            raise RuntimeError(
                f"expected a held-out loss of {loss}, got {run['held_out_loss']} from {run['layout']} on {run['rows']}"
            )


def about(plan: Plan) -> dict[str, Any]:
    """What the figures depend on: machine, versions, settings."""
    cpu = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    packages = ("torch", "transformers", "peft", "trl", "bitsandbytes")
    return {
        "date": str(date.today()),
        "cpu": cpu[1] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": ", ".join(f"{package} {version(package)}" for package in packages),
        "environment": " ".join(f"{name}={value}" for name, value in ENVIRONMENT.items()),
        "repeats": plan.repeats,
        "steps": plan.steps,
        "loss_tolerance": {"fp32": FP32_TOLERANCE, "bf16": BF16_TOLERANCE},
    }
