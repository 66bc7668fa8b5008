"""SIGKILLs at random moments of a run, and in the middle of checkpoint writes."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import psutil

from benchmarks.chaos_jobs import LONGEST_SECONDS, Job, kill
from benchmarks.chaos_registry import judge
from benchmarks.chaos_table import Trial

KILLS_OF_A_RUN = 6
_POLL_SECONDS, _LONGEST_WRITE = 0.001, 0.02


def kill_runs(home: Path, seeds: Iterator[Random]) -> Iterator[Trial]:
    """SIGKILL of `sft-flow run` at a random moment, then the same command again."""
    reference, started = Job(home / "reference"), time.monotonic()
    assert reference.finish() == 0, reference.output
    longest = time.monotonic() - started
    yield from _disturb(reference, seeds, lambda process, job, random: _wait(process, random.uniform(0, longest)))


def kill_checkpoint_writes(home: Path, seeds: Iterator[Random]) -> Iterator[Trial]:
    """SIGKILL of the script while it writes a checkpoint, then the same command again."""
    reference = Job(home / "reference", script=True)
    assert reference.finish() == 0, reference.output
    yield from _disturb(reference, seeds, _wait_for_a_write)


def kill_servers(home: Path, seeds: Iterator[Random]) -> Iterator[Trial]:
    """SIGKILL of the Prefect server of `sft-flow run` at a random moment; the run goes on."""
    reference, started = Job(home / "reference"), time.monotonic()
    assert reference.finish() == 0, reference.output
    longest = time.monotonic() - started
    for random in seeds:
        job = replace(reference, folder=reference.folder.with_name("disturbed"))
        process = job.start()
        _wait(process, random.uniform(longest / 4, longest))
        children = psutil.Process(process.pid).children() if process.poll() is None else []
        servers = [child for child in children if "flows.prefect_app:create_app" in child.cmdline()]
        for server in servers:
            server.kill()
        yield _compare(job, reference, len(servers), process.wait(LONGEST_SECONDS))
        shutil.rmtree(job.folder, ignore_errors=True)


def _disturb(
    reference: Job, seeds: Iterator[Random], wait: Callable[[subprocess.Popen[str], Job, Random], None]
) -> Iterator[Trial]:
    """Start a job and kill it after ``wait``, several times, then let it end, and compare it with the reference."""
    for random in seeds:
        job, killed = replace(reference, folder=reference.folder.with_name("disturbed")), 0
        for _ in range(KILLS_OF_A_RUN):
            process = job.start()
            wait(process, job, random)
            killed += process.poll() is None
            kill(process)
        yield _compare(job, reference, killed, job.finish())
        shutil.rmtree(job.folder, ignore_errors=True)


def _wait(process: subprocess.Popen[str], seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def _wait_for_a_write(process: subprocess.Popen[str], job: Job, random: Random) -> None:
    """Return a moment after a checkpoint's folder has appeared without its manifest, or when the process has ended."""
    known = set(job.output_dir.glob("**/checkpoint-*"))
    left = random.randint(1, 4)
    while process.poll() is None and left:
        for folder in set(job.output_dir.glob("**/checkpoint-*")) - known:
            known.add(folder)
            left -= not (folder / "manifest.json").exists()
        time.sleep(_POLL_SECONDS)
    time.sleep(random.uniform(0, _LONGEST_WRITE))


def _compare(job: Job, reference: Job, killed: int, code: int) -> Trial:
    """A disturbed run is to end as the reference did: the same weights, and the same in MLflow."""
    if code:
        return Trial(killed, 0, 1, 0, f"exit code {code}: {job.output[-500:]}")
    if job.weights() != reference.weights():
        return Trial(killed, 0, 1, 0, "other weights")
    return Trial(killed, killed, 0, 0) if job.script else judge(job.held(), reference.held(), killed)
