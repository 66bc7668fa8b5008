"""Disks that become full when a stage of a run begins: the run ends with a sentence, and resumes when there is space.

``python -m benchmarks.chaos_full_disk HOME STAGE …`` writes one trial a line. It runs in a namespace of mounts of its
own, so that its small disk is gone with it, whatever happens.
"""

import contextlib
import glob
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import Final

from benchmarks.chaos_jobs import LONGEST_SECONDS, Job, compare, error_lines, timed, warm
from benchmarks.chaos_table import Trial, read_results
from flows.cli import set_environment
from flows.doc_sections import ROOT

# What is in the output folder when a stage begins.
STAGES: Final = {
    "start": "",
    "rows": "datasets/*",
    "MLflow's store": "mlflow.lock",
    "training": "*/checkpoints/checkpoint-1",
    "adapter": "*/checkpoints/checkpoint-8",
    "evaluation": "*/adapter/manifest.json",
    "registration": "*/evaluation-*/manifest.json",
    "upload": "mlartifacts/models/*",
    "parity check": "mlartifacts/models/*/artifacts/MLmodel",
    "decision": "mlartifacts/*/artifacts/evaluation/*/scores.json",
}
LONGEST_ERROR: Final = 20  # lines, apart from the log of what went well
DISK_ERRORS: Final = {2, 74}  # exit codes, before and after the start of a run
_POLL_SECONDS, _SMALL, _LARGE = 0.01, 64 * 1024, 4 * 1024**3


def full_disk(home: Path, seeds: Iterator[Random]) -> Iterator[Trial]:
    """A disk that becomes full when a stage of `sft-flow run` begins, then space, and the same command again."""
    done = Counter(trial["what"] for trial in read_results().get("full_disk", {}).get("trials", []))
    stages = sorted(STAGES, key=lambda stage: done[stage])
    command = ["unshare", "-Urm", sys.executable, "-m", "benchmarks.chaos_full_disk", str(home), *stages]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield from (Trial(**json.loads(line)) for _, line in zip(seeds, process.stdout, strict=False))
        finally:
            process.kill()


def main() -> None:
    """Run a job for each stage."""
    set_environment()
    home, *stages = sys.argv[1:]
    with warm() as starter:
        reference, _ = timed(Job(Path(home) / "reference", warm=starter))
        for stage in stages:
            trial = _fill(replace(reference, folder=Path(home) / stage.replace(" ", "-")), reference, stage)
            sys.stdout.write(f"{json.dumps(asdict(trial))}\n")
            sys.stdout.flush()


def _fill(job: Job, reference: Job, stage: str) -> Trial:
    """Run a job whose disk becomes full in a stage, and again with space."""
    with _small_disk(job.output_dir, _LARGE if STAGES[stage] else _SMALL):
        first = _run_until_full(job, STAGES[stage])
        lines = error_lines(job.output)
        _resize(job.output_dir, _LARGE)
        if not first:
            return Trial(0, 0, 0, 0, "nothing is written from there on", stage)
        trial = compare(job, reference, 1, job.finish(), stage)
    if first in DISK_ERRORS and len(lines) <= LONGEST_ERROR:
        return trial
    problem = f"exit code {first}, {len(lines)} lines: {lines[-1:]} {trial.problem}"
    return replace(trial, survived=0, problem=problem)


def _run_until_full(job: Job, mark: str) -> int:
    """The exit code of a job whose disk is full as soon as there is a file that matches the mark."""
    process = job.start()
    while mark and process.poll() is None and not glob.glob(mark, root_dir=job.output_dir):  # noqa: PTH207
        time.sleep(_POLL_SECONDS)
    while mark and process.poll() is None:
        found = os.statvfs(job.output_dir)
        with contextlib.suppress(subprocess.CalledProcessError):  # it was written to at this moment
            _resize(job.output_dir, max(1, found.f_blocks - found.f_bfree) * found.f_frsize)  # 0 is no limit
            break
    return process.wait(LONGEST_SECONDS)


@contextlib.contextmanager
def _small_disk(folder: Path, size: int) -> Iterator[None]:
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _resize(folder: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
