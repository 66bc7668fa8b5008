"""SIGKILLs at random moments of a run, and in the middle of checkpoint writes."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import psutil

from benchmarks.chaos_counts import judge
from benchmarks.chaos_jobs import LONGEST_SECONDS, Job, kill, warm
from benchmarks.chaos_table import Trial
from benchmarks.chaos_warm import Forked

KILLS_OF_A_RUN = 12
_POLL_SECONDS, _LONGEST_WRITE = 0.001, 0.02

Running = subprocess.Popen[Any] | Forked
Wait = Callable[[Running, Job, Random], None]


def kill_runs(home: Path, seeds: Iterator[Random]) -> Iterator[Trial]:
    """SIGKILL of `sft-flow run` at a random moment, then the same command again."""
    with warm() as starter:
        reference, longest = timed(Job(home / "reference", warm=starter))
        yield from _disturb(reference, seeds, lambda process, job, random: _wait(process, random.uniform(0, longest)))


def kill_checkpoint_writes(home: Path, seeds: Iterator[Random]) -> Iterator[Trial]:
    """SIGKILL of the script while it writes a checkpoint, then the same command again."""
    with warm() as starter:
        reference, _ = timed(Job(home / "reference", script=True, warm=starter))
        yield from _disturb(reference, seeds, _wait_for_a_write)


def kill_servers(home: Path, seeds: Iterator[Random]) -> Iterator[Trial]:
    """SIGKILL of the Prefect server of `sft-flow run` at a random moment; the run goes on."""
    with warm() as starter:
        reference, longest = timed(Job(home / "reference", warm=starter))
        for random in seeds:
            job = replace(reference, folder=reference.folder.with_name("disturbed"))
            process, killed = job.start(), 0
            while process.poll() is None and not killed:
                _wait(process, random.uniform(0, longest))
                killed = _kill_server(process)
            yield _compare(job, reference, killed, process.wait(LONGEST_SECONDS))
            shutil.rmtree(job.folder, ignore_errors=True)


def _kill_server(process: Running) -> int:
    """SIGKILL of a run's Prefect server; how many there were."""
    children = psutil.Process(process.pid).children() if process.poll() is None else []
    servers = [child for child in children if "flows.prefect_app:create_app" in child.cmdline()]
    for server in servers:
        server.kill()
    return len(servers)


def timed(job: Job) -> tuple[Job, float]:
    """A job that has run to its end, to compare others with, and the seconds it took."""
    started = time.monotonic()
    assert job.finish() == 0, job.output
    return job, time.monotonic() - started


def _disturb(reference: Job, seeds: Iterator[Random], wait: Wait) -> Iterator[Trial]:
    """Start a job and kill it after ``wait``, again and again until it ends before that, and compare it with the
    reference."""
    for random in seeds:
        job, killed = replace(reference, folder=reference.folder.with_name("disturbed")), 0
        while killed < KILLS_OF_A_RUN:
            process = job.start()
            wait(process, job, random)
            if not kill(process):
                break
            killed += 1
        yield _compare(job, reference, killed, job.finish() if killed == KILLS_OF_A_RUN else process.wait())
        shutil.rmtree(job.folder, ignore_errors=True)


def _wait(process: Running, seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def _wait_for_a_write(process: Running, job: Job, random: Random) -> None:
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
