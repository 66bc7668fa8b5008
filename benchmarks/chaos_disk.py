"""Disks that are full, and databases that are deleted or locked: the run ends with a sentence, and then goes on."""

import contextlib
import shlex
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

from benchmarks.chaos_counts import judge
from benchmarks.chaos_jobs import LONGEST_SECONDS, Job
from benchmarks.chaos_table import Trial

LONGEST_ERROR = 20  # lines, apart from the log of what went well
_LOCKED_SECONDS = 30
# A namespace of mounts is the process's own, so that the small disk is gone with it, whatever happens.
_ON_A_SMALL_DISK = """
mkdir -p {output} && mount -t tmpfs -o size={size}k none {output}
{command} > {folder}/full.log 2>&1; echo $? > {folder}/full.code
mount -o remount,size=4g {output}
{command} > {folder}/output.log 2>&1; code=$?
cp -r {output} {folder}/kept; exit $code
"""


def full_disk(home: Path, seeds: Iterator[Random]) -> Iterator[Trial]:
    """A disk that is full at a random point of `sft-flow run`, then space, and the same command again."""
    reference = _reference(home)
    needed = sum(path.stat().st_size for path in reference.output_dir.rglob("*") if path.is_file()) // 1024
    for random in seeds:
        job = replace(reference, folder=home / "disturbed")
        command = shlex.join(job.command)
        script = _ON_A_SMALL_DISK.format(
            output=job.output_dir, folder=job.folder, command=command, size=round(needed * random.uniform(0.1, 1))
        )
        code = _in_a_namespace(script, job)
        yield _judge_full_disk(job, reference, code)
        shutil.rmtree(job.folder, ignore_errors=True)


def _in_a_namespace(script: str, job: Job) -> int:
    return subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script], env=job.environment, timeout=2 * LONGEST_SECONDS, check=False
    ).returncode


def _judge_full_disk(job: Job, reference: Job, code: int) -> Trial:
    first, lines = int((job.folder / "full.code").read_text()), error_lines(job.folder / "full.log")
    if first == 0:
        return Trial(0, 0, 0, 0)  # there was room enough
    if code:
        return Trial(1, 0, 1, 0, f"exit code {code} with space: {job.output[-500:]}")
    kept = replace(job, folder=job.folder / "kept", output_name=".")
    if kept.weights() != reference.weights():
        return Trial(1, 0, 1, 0, "other weights")
    long = f"exit code {first}, {len(lines)} lines of errors: {lines[-1:]}" if len(lines) > LONGEST_ERROR else ""
    return judge(kept.held(), reference.held(), 1, long)


def error_lines(log: Path) -> list[str]:
    """The lines of a command's output that do not report what went well."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if line.strip() and "| INFO " not in line]


def locked_store(home: Path, seeds: Iterator[Random]) -> Iterator[Trial]:
    """Another program holds MLflow's database locked for half a minute, from a random moment of `sft-flow run` on."""
    reference = _reference(home)
    for random in seeds:
        job = replace(reference, folder=home / "disturbed")
        process, store = job.start(), job.output_dir / "mlflow.db"
        while process.poll() is None and not store.exists():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(random.uniform(0.1, 20))
        with contextlib.closing(sqlite3.connect(store, timeout=60, isolation_level="EXCLUSIVE")) as other:
            other.execute("BEGIN EXCLUSIVE")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LOCKED_SECONDS)
            other.rollback()
        yield _judge_end(job, reference, process.wait(LONGEST_SECONDS))
        shutil.rmtree(job.folder, ignore_errors=True)


def deleted_databases(home: Path, seeds: Iterator[Random]) -> Iterator[Trial]:
    """MLflow's and Prefect's databases are deleted between two runs: the second registers again and trains nothing."""
    reference = _reference(home)
    for _ in seeds:
        job = replace(reference, folder=home / "disturbed")
        shutil.copytree(reference.folder, job.folder)
        for database in ("mlflow.db", "prefect/prefect.db"):
            (job.output_dir / database).unlink()
        yield _judge_end(job, reference, job.finish())
        shutil.rmtree(job.folder, ignore_errors=True)


def _reference(home: Path) -> Job:
    job = Job(home / "reference")
    assert job.finish() == 0, job.output
    return job


def _judge_end(job: Job, reference: Job, code: int) -> Trial:
    lines = error_lines(job.folder / "output.log")
    if code or job.weights() != reference.weights():
        return Trial(1, 0, 1, 0, f"exit code {code}: {job.output[-500:]}")
    return judge(job.held(), reference.held(), 1, "" if code == 0 else f"{len(lines)} lines")
