"""What has to be true on a GPU, in eight minutes: `python -m benchmarks.gpu [--steps env dtypes …] [--tiny]`.

Bases have Qwen's shapes and random weights, so nothing is downloaded; neither Prefect nor MLflow is needed. Every
result is written when it is found; a step that fails or hangs does not keep the next from running. `--tiny` runs tiny
models, also on a CPU. benchmarks/README.md says how to run it on a machine without a network.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.gpu_steps import STEPS
from benchmarks.gpu_steps.checks import Record
from training_core.grid import Grid

RESULTS = Path(__file__).parent / "results" / "gpu.json"
TINY_RESULTS = Path(__file__).parents[1] / "runs" / "benchmarks" / "gpu_tiny.json"
# Libraries read these when they are imported.
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore",
}
_MEMORY_FOLDER, _ROOM_FOR_BASES = Path("/dev/shm"), 24 * 2**30
_LINES_KEPT = 60


def run(steps: list[str], output: Path, seconds: float, *, tiny: bool) -> Record:
    """Run steps in workers, a new one after each failure, and return what was found."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)
    until = time.time() + seconds
    with tempfile.TemporaryDirectory(dir=_folder_for_bases()) as folder:
        options = [str(output), folder, "--until", str(until), *(["--tiny"] if tiny else [])]
        while (left := [step for step in steps if not Record(output).ended(step)]) and time.time() < until - 1:
            _run_worker(options, left, output)
    record = Record(output)
    for step in left:
        record.end(step, 0, "not run: no time was left")
    return record


def _run_worker(options: list[str], steps: list[str], output: Path) -> None:
    """Run steps until one fails, which then is recorded as ended, with the last lines of the worker's errors.

    A worker that began no step could not import what every step needs: all of them have failed.
    """
    command = [sys.executable, "-m", "benchmarks.gpu_steps.worker", *options, *steps]
    log, started = output.with_suffix(".log"), time.monotonic()
    with log.open("w") as errors:
        code = subprocess.run(command, env=os.environ | QUIET, stderr=errors, check=False).returncode
    record = Record(output)
    begun = [step for step in steps if step in record.steps]
    for step in (step for step in begun or steps if code and not record.ended(step)):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LINES_KEPT:]
        record.end(step, time.monotonic() - started, "\n".join([*lines, f"exit code {code}"]))


def _folder_for_bases() -> Path | None:
    """Memory where there is room, since the files of a base of seven billion weights have 15 GB."""
    roomy = _MEMORY_FOLDER.is_dir() and shutil.disk_usage(_MEMORY_FOLDER).free > _ROOM_FOR_BASES
    return _MEMORY_FOLDER if roomy else None


def table(record: Record) -> Grid:
    """All steps and checks."""
    rows = []
    for name, step in record.steps.items():
        last_lines = step.get("error", "").splitlines()[-2:]
        rows.append(
            (
                name,
                " / ".join(last_lines),
                "",
                f"{step['seconds']:.0f} s",
                _mark(record.passed(name)) if _tested(step) else "not run",
            )
        )
        for check in step["checks"]:
            mark = _mark(check["passed"]) if check["wanted"] else ""
            rows.append(("", check["what"], check["found"], check["wanted"], mark))
    return Grid("On this GPU", ("step", "check", "found", "wanted", ""), rows)


def _tested(step: dict[str, Any]) -> bool:
    """Whether a step failed or wanted anything; on a CPU some only say that they need a GPU."""
    return "error" in step or any(check["wanted"] for check in step["checks"])


def _mark(passed: bool) -> str:
    return "passed" if passed else "FAILED"


def main() -> None:
    """Run the steps, print their errors and one table, and end with exit code 1 unless all passed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--tiny", action="store_true", help="tiny models, on a CPU too")
    parser.add_argument("--seconds", type=float, default=480, help="for all steps together")
    parser.add_argument("--output", type=Path, help="the file for the results, as JSON")
    arguments = parser.parse_args()
    if not (arguments.tiny or torch.cuda.is_available()):
        parser.error("expected a GPU, found none; --tiny runs on a CPU")
    output = arguments.output or (TINY_RESULTS if arguments.tiny else RESULTS)
    record = run(arguments.steps, output, arguments.seconds, tiny=arguments.tiny)
    console = Console(width=140)
    for name, step in record.steps.items():
        if "error" in step:
            console.print(f"{name}:\n{step['error']}\n", markup=False, highlight=False)
    console.print(table(record).terminal())
    sys.exit(not all(map(record.passed, arguments.steps)))


if __name__ == "__main__":
    main()
