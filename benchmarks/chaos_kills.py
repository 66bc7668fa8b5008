"""SIGKILLs at random moments of a run, and in the middle of checkpoint writes."""

import contextlib
import glob
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import psutil

from benchmarks.chaos_jobs import LONGEST_SECONDS, Job, compare, kill, timed, warm
from benchmarks.chaos_table import Trial
from benchmarks.chaos_warm import Forked
from flows.local_servers import prefect_server

KILLS_OF_A_RUN = 12
_POLL_SECONDS, _LONGEST_WRITE = 0.001, 0.02

Running = subprocess.Popen[Any] | Forked
Wait = Callable[[Running, Job, Random], None]


def kill_runs(home: Path, seeds: Iterator[Random]) -> Iterator[Trial]:
    """SIGKILL of `sft-flow run` at a random moment, with a Prefect server of its own or not; then the same command."""
    with warm() as starter, prefect_server(home / "prefect", 0, log=home / "server.log") as server:
        shared = (("PREFECT_API_URL", f"{server.wait()}/api"),)
        reference, longest = timed(Job(home / "reference", warm=starter, variables=shared))
        for random in seeds:
            one = replace(reference, variables=random.choice([(), shared, shared]))
            yield from _disturb(one, [random], _moments(longest))


def _moments(longest: float) -> Wait:
    """Any moment of a run from its beginning; when it resumes, and has less to do, one of a third of that time."""

    def wait(process: Running, job: Job, random: Random) -> None:
        _wait(process, random.uniform(0, longest / 3 if job.output_dir.exists() else longest))

    return wait


def kill_checkpoint_writes(home: Path, seeds: Iterator[Random]) -> Iterator[Trial]:
    """SIGKILL of the script while it writes a checkpoint, then the same command again."""
    with warm() as starter:
        reference, _ = timed(Job(home / "reference", script=True, warm=starter, steps=16))
        yield from _disturb(reference, seeds, _wait_for_a_write)


def kill_servers(home: Path, seeds: Iterator[Random]) -> Iterator[Trial]:
    """SIGKILL of the Prefect server of `sft-flow run` at a random moment; the run goes on, or ends with one sentence
    where the server had not started yet, and the same command again."""
    with warm() as starter:
        reference, longest = timed(Job(home / "reference", warm=starter))
        for random in seeds:
            job = replace(reference, folder=reference.folder.with_name("disturbed"))
            process, killed = job.start(), 0
            while process.poll() is None and not killed:
                _wait(process, random.uniform(0, longest))
                killed = _kill_server(process)
            code = process.wait(LONGEST_SECONDS) and job.finish()
            yield compare(job, reference, killed, code)
            shutil.rmtree(job.folder, ignore_errors=True)


def _kill_server(process: Running) -> int:
    """SIGKILL of a run's Prefect server; how many there were."""
    children = psutil.Process(process.pid).children() if process.poll() is None else []
    servers = [child for child in children if "flows.prefect_app:create_app" in child.cmdline()]
    for server in servers:
        server.kill()
    return len(servers)


def _disturb(reference: Job, seeds: Iterable[Random], wait: Wait) -> Iterator[Trial]:
    """Start a job and kill it after ``wait``, again and again until it ends before that, and compare it with the
    reference."""
    for random in seeds:
        job, stages = replace(reference, folder=reference.folder.with_name("disturbed")), list[str]()
        while len(stages) < KILLS_OF_A_RUN:
            process = job.start()
            wait(process, job, random)
            if not kill(process):
                break
            stages.append(job.stage)
        code = job.finish() if len(stages) == KILLS_OF_A_RUN else process.wait()
        yield compare(job, reference, len(stages), code, ", ".join(filter(None, stages)))
        shutil.rmtree(job.folder, ignore_errors=True)


def _wait(process: Running, seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def _wait_for_a_write(process: Running, job: Job, random: Random) -> None:
    """Return a moment after a checkpoint's folder has appeared without its manifest, or when the process has ended."""
    known, left = _checkpoints(job), random.randint(1, 4)
    while process.poll() is None and left:
        for folder in _checkpoints(job) - known:
            known.add(folder)
            left -= not (job.output_dir / folder / "manifest.json").exists()
        time.sleep(_POLL_SECONDS)
    time.sleep(random.uniform(0, _LONGEST_WRITE))


def _checkpoints(job: Job) -> set[str]:
    """Not ``Path.glob``: folders disappear while it looks."""
    return set(glob.glob("*/checkpoints/checkpoint-*", root_dir=job.output_dir))  # noqa: PTH207
