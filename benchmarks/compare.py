"""One comparison: all layouts in turn on the same rows, each training alone in its process, held to the same result."""

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

from benchmarks import floor, ours, with_trl
from benchmarks.findings import ALONE, BEST, DOCUMENTED, FLOOR, OURS, Findings
from benchmarks.rows import Architecture, RowSet, write_base
from benchmarks.training import Job, run_alone

LAYOUTS = {
    DOCUMENTED: with_trl.as_documented,
    BEST: with_trl.at_its_best,
    FLOOR: floor.by_hand,
    ALONE: ours.not_sharing,
    OURS: ours.sharing,
}
START_ROWS = RowSet(100, 2, 2)
# Read when libraries are imported; threads that wait by spinning would be billed for their waiting.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
BF16_TOLERANCE, FP32_TOLERANCE = 5e-2, 1e-4


@dataclass(frozen=True)
class Plan:
    """`everyone` trains on the first sets of rows; only ours on the others, where nobody else would gain anything.

    `starts` fresh interpreters measure the start; the other processes are forks of one that has imported everything.
    """

    everyone: tuple[RowSet, ...]
    only_ours: tuple[RowSet, ...]
    repeats: int
    starts: int
    steps: int = 2
    gradient_checkpointing: bool = False

    def turns(self) -> Iterator[tuple[RowSet, str]]:
        """The trainings in turn; the slowest, of which nothing hangs by a few percent, only in the first."""
        for repeat in range(self.repeats):
            for rows in self.everyone:
                yield from ((rows, layout) for layout in LAYOUTS if repeat == 0 or layout != DOCUMENTED)
            yield from ((rows, OURS) for rows in self.only_ours)


def compare(plan: Plan, architecture: Architecture, console: Console) -> Findings:
    """All trainings of a plan. What they learnt is to be judged by ``check_losses``, once it is saved."""
    os.environ.update(ENVIRONMENT | QUIET)
    # A process that has found a GPU cannot be forked.
    warm, cold = get_context("spawn" if torch.cuda.is_available() else "forkserver"), get_context("spawn")
    warm.set_forkserver_preload([module.__name__ for module in (floor, ours, with_trl)])
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
    return Findings(about(plan), runs, starts)


def check_losses(findings: Findings) -> None:
    """Raise ``RuntimeError`` unless all trainings on the same rows learnt the same, by their held-out loss."""
    expected: dict[tuple[int, ...], float] = {}
    for run in sorted([*findings.runs, *findings.starts], key=lambda run: run["layout"] != FLOOR):
        loss = expected.setdefault(tuple(run["rows"].values()), run["held_out_loss"])
        in_bf16 = run["layout"] == DOCUMENTED or torch.cuda.is_available()
        if abs(run["held_out_loss"] - loss) > (BF16_TOLERANCE if in_bf16 else FP32_TOLERANCE):
            raise RuntimeError(f"{run['layout']} on {run['rows']} ends at {run['held_out_loss']}, not at {loss}")


def about(plan: Plan) -> dict[str, Any]:
    """What figures depend on."""
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
