"""Small trainings in processes of their own, to be disturbed, and what they leave."""

import contextlib
import hashlib
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.chaos_counts import held, judge
from benchmarks.chaos_table import Trial
from benchmarks.chaos_warm import Forked, Warm, warm_up
from flows.doc_sections import ROOT
from samples.cases import write_rows

NAME: Final = "chaos"
SETTINGS: Final[dict[str, str]] = {
    "registered_model_name": NAME,
    "model_name": str(ROOT / "samples" / "tiny_qwen"),
    "save_steps": "1",
    "logging_steps": "1",
    "per_device_train_batch_size": "1",
    "gradient_accumulation_steps": "2",
    "gradient_checkpointing": "false",
    "learning_rate": "1e-3",
    "max_eval_rows": "4",
    "eval_max_new_tokens": "6",
}
LONGEST_SECONDS: Final = 900
_ROWS, _SEED = 120, 7


@dataclass(frozen=True)
class Job:
    """A run of ``sft-flow run``, or of the script without Prefect and MLflow, in a folder of its own."""

    folder: Path
    script: bool = False
    output_name: str = "runs"
    steps: int = 8
    warm: Warm | None = None  # forks it, which is cheaper than to start it
    variables: tuple[tuple[str, str], ...] = ()  # of the environment

    @property
    def output_dir(self) -> Path:
        """Where the run writes."""
        return self.folder / self.output_name

    @property
    def environment(self) -> dict[str, str]:
        """Servers of its own unless ``variables`` say otherwise, and one thread."""
        own = {"PREFECT_API_URL": "", "MLFLOW_TRACKING_URI": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return os.environ | own | dict(self.variables)

    @property
    def module(self) -> str:
        """Where ``main`` is."""
        return "train_qlora_sft" if self.script else "flows.cli"

    @property
    def arguments(self) -> list[str]:
        """The command line after the program; its rows are written when they are missing."""
        rows = self.folder / "rows.jsonl"
        if not rows.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_rows(rows, _ROWS, _SEED, 0.0)
        own = {"max_steps": str(self.steps), "dataset_path": str(rows), "output_dir": str(self.output_dir)}
        flags = [part for name, value in (SETTINGS | own).items() for part in (f"--{name}", value)]
        return flags if self.script else ["run", *flags]

    @property
    def command(self) -> list[str]:
        """The command line for a process of its own."""
        program = f"import sys; from {self.module} import main; sys.exit(main())"
        return [sys.executable, "-c", program, *self.arguments]

    def start(self) -> subprocess.Popen[Any] | Forked:
        """Start it in a session of its own; its output is in ``output.log``."""
        arguments, output = self.arguments, self.folder / "output.log"
        output.unlink(missing_ok=True)
        if self.warm:
            return self.warm.start(self.module, arguments, self.environment, output)
        with output.open("w") as log:
            own: Any = {"stdout": log, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
            return subprocess.Popen(self.command, cwd=ROOT, env=self.environment, **own)

    def finish(self) -> int:
        """Run it to its end; returns its exit code."""
        process = self.start()
        try:
            return process.wait(LONGEST_SECONDS)
        finally:
            kill(process)

    @property
    def output(self) -> str:
        """What the last start printed."""
        return (self.folder / "output.log").read_text(encoding="utf-8", errors="replace")

    @property
    def stage(self) -> str:
        """The task that the last start of ``sft-flow run`` finished last."""
        tasks = re.findall(r"Task run '([\w-]+(?: [a-z]{3,}\b)?)[^']*' - Finished", self.output)
        return f"after {tasks[-1]}" if tasks else "" if self.script else "at the start"

    def weights(self) -> str:
        """SHA-256 of the adapter's weights; empty where there is none."""
        found = [*self.output_dir.glob("*/adapter/adapter_model.safetensors")]
        found += self.output_dir.glob("adapter_model.safetensors")
        return "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in found)

    def held(self) -> dict[str, int]:
        """What MLflow holds of its training."""
        store = self.output_dir / "mlflow.db"
        with contextlib.closing(sqlite3.connect(store)) as database:
            tags = database.execute("SELECT DISTINCT value FROM tags WHERE key = 'sft_flow.fingerprint'")
            ((fingerprint,),) = tags.fetchall()
        return held(store, fingerprint, NAME)


def kill(process: subprocess.Popen[Any] | Forked) -> bool:
    """SIGKILL of a process, whose servers notice that and end; whether it was still running."""
    running = process.poll() is None
    process.kill()
    process.wait()
    return running


def timed(job: Job) -> tuple[Job, float]:
    """A job that has run to its end, to compare others with, and the seconds it took."""
    started = time.monotonic()
    assert job.finish() == 0, job.output
    return job, time.monotonic() - started


def error_lines(output: str) -> list[str]:
    """The lines of a command's output that do not report what went well."""
    return [line for line in output.splitlines() if line.strip() and "| INFO " not in line]


def compare(job: Job, reference: Job, injected: int, code: int, what: str = "") -> Trial:
    """A disturbed run is to end as the reference did: the same weights, and the same in MLflow."""
    if code:
        return Trial(injected, 0, 1, 0, f"exit code {code}: {job.output[-1500:]}", what)
    if job.weights() != reference.weights():
        return Trial(injected, 0, 1, 0, "other weights", what)
    found = Trial(injected, injected, 0, 0) if job.script else judge(job.held(), reference.held(), injected)
    return replace(found, what=what)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is deleted at the end, also when servers still write to it."""
    with tempfile.TemporaryDirectory(prefix="sft-flow-chaos-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextlib.contextmanager
def warm() -> Iterator[Warm]:
    """A process that has imported the libraries of jobs."""
    started = warm_up(Job(Path()).environment, ROOT)
    try:
        yield started
    finally:
        kill(started.process)
