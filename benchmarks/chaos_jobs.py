"""Small trainings in processes of their own, to be disturbed, and what they leave."""

import contextlib
import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.chaos_registry import held
from flows.doc_sections import ROOT
from samples.cases import write_rows

NAME: Final = "chaos"
SETTINGS: Final = {
    "registered_model_name": NAME,
    "model_name": str(ROOT / "samples" / "tiny_qwen"),
    "max_steps": "16",
    "save_steps": "2",
    "logging_steps": "1",
    "per_device_train_batch_size": "2",
    "gradient_accumulation_steps": "2",
    "gradient_checkpointing": "false",
    "learning_rate": "1e-3",
    "max_eval_rows": "6",
    "eval_max_new_tokens": "12",
}
LONGEST_SECONDS: Final = 900
_ROWS, _SEED = 120, 7


@dataclass(frozen=True)
class Job:
    """A run of ``sft-flow run``, or of the script without Prefect and MLflow, in a folder of its own."""

    folder: Path
    script: bool = False
    output_name: str = "runs"

    @property
    def output_dir(self) -> Path:
        """Where the run writes."""
        return self.folder / self.output_name

    @property
    def environment(self) -> dict[str, str]:
        """Servers of its own, and one thread."""
        variables = {"PREFECT_API_URL": "", "MLFLOW_TRACKING_URI": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return os.environ | variables

    @property
    def command(self) -> list[str]:
        """The command line; its rows are written when they are missing."""
        rows = self.folder / "rows.jsonl"
        if not rows.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_rows(rows, _ROWS, _SEED, 0.0)
        values = {**SETTINGS, "dataset_path": str(rows), "output_dir": str(self.output_dir)}
        flags = [part for name, value in values.items() for part in (f"--{name}", value)]
        start = (
            [str(ROOT / "train_qlora_sft.py")] if self.script else ["-c", "from flows.cli import main; main()", "run"]
        )
        return [sys.executable, *start, *flags]

    def start(self, **environment: str) -> subprocess.Popen[str]:
        """Start it in a session of its own; its output is in ``output.log``."""
        command = self.command
        with (self.folder / "output.log").open("w") as log:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def finish(self, **environment: str) -> int:
        """Run it to its end; returns its exit code."""
        process = self.start(**environment)
        try:
            return process.wait(LONGEST_SECONDS)
        finally:
            kill(process)

    @property
    def output(self) -> str:
        """What the last start printed."""
        return (self.folder / "output.log").read_text(encoding="utf-8", errors="replace")

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


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL of a process; its servers notice that and end."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is deleted at the end, also when servers still write to it."""
    with tempfile.TemporaryDirectory(prefix="sft-flow-chaos-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
