"""Databases that are locked, or deleted between two runs."""

import contextlib
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

from benchmarks.chaos_jobs import LONGEST_SECONDS, Job, compare, timed, warm
from benchmarks.chaos_table import Trial

_LOCKED_SECONDS = 30


def locked_store(home: Path, seeds: Iterator[Random]) -> Iterator[Trial]:
    """Another program holds MLflow's database locked for half a minute, from a random moment of `sft-flow run` on."""
    with warm() as starter:
        reference, longest = timed(Job(home / "reference", warm=starter))
        for random in seeds:
            yield _locked(replace(reference, folder=home / "disturbed"), reference, random.uniform(0, longest))
            shutil.rmtree(home / "disturbed", ignore_errors=True)


def _locked(job: Job, reference: Job, moment: float) -> Trial:
    """Run a job whose store is locked from this moment on, or from when there is a store."""
    process, store = job.start(), job.output_dir / "mlflow.db"
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(moment)
    while process.poll() is None and not store.exists():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
    met = process.poll() is None
    with contextlib.closing(sqlite3.connect(store, timeout=60, isolation_level="EXCLUSIVE")) as other:
        other.execute("BEGIN EXCLUSIVE")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LOCKED_SECONDS)
        other.rollback()
    return compare(job, reference, int(met), process.wait(LONGEST_SECONDS))


def deleted_databases(home: Path, seeds: Iterator[Random]) -> Iterator[Trial]:
    """MLflow's and Prefect's databases are deleted between two runs: the second registers again and trains nothing."""
    with warm() as starter:
        reference, _ = timed(Job(home / "reference", warm=starter))
        for _ in seeds:
            job = replace(reference, folder=home / "disturbed")
            shutil.copytree(reference.folder, job.folder)
            for database in ("mlflow.db", "prefect/prefect.db"):
                (job.output_dir / database).unlink()
            yield compare(job, reference, 1, job.finish())
            shutil.rmtree(job.folder, ignore_errors=True)
