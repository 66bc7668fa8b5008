"""Answers a registered version's cases: on this machine for a command, and as a task of ``predict-flow``."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO
from uuid import UUID

import httpx
from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run

from tasks.recovery import POLL_SECONDS, SCORING, end_when_replaced
from tasks.refs import RegisteredRef
from tasks.registered import fetch_registered, registered_settings, served_settings
from training_core.config import RunConfig, SettingsError
from training_core.escaping import in_markdown, on_one_line
from training_core.grid import Grid
from training_core.model_setup import free_models
from training_core.prediction.answering import Answerer, Progress
from training_core.prediction.cases import Cases, find_cases
from training_core.prediction.job import Job, output_problems, read_summary, write_answers
from training_core.prediction.lines import Counts
from training_core.rows.strict_json import DataError
from training_core.training.gpu_check import gpu_problems
from training_core.training.gpu_lock import sole_use_of_gpu


@dataclass(frozen=True)
class Asked:
    """Where cases are and where their answers go; ``None`` for a stream. ``name`` is what reports call the cases."""

    rows: str
    output: str | None
    name: str | None = None
    batch_size: int | None = None


def open_job(config: RunConfig, number: str, asked: Asked, *, gpu_expected: bool) -> Job:
    """All that a version's answers to these cases depend on; reads the cases once, and loads no model.

    Raises ``SettingsError`` and ``DataError`` for what would end the job later.
    """
    problems = output_problems(asked.rows, asked.output) if asked.output else []
    if problems := [*problems, *gpu_problems(gpu_expected=gpu_expected)]:
        raise SettingsError(problems)
    registered, cases = fetch_registered(config, number), _find_cases(asked)
    return Job(
        cases=cases,
        answerer=_answerer(registered_settings(config, number), registered, asked.batch_size),
        version=f"models:/{config.registered_model_name}/{registered.version}",
        adapter_digest=registered.adapter.digest,
        base_digest=registered.run.base_digest,
        output=asked.output,
        parts=f"{asked.output}.parts" if asked.output else _parts_of_a_stream(config, cases.digest),
    )


def _find_cases(asked: Asked) -> Cases:
    try:
        return find_cases(asked.rows, asked.name)
    except DataError:
        raise
    except (OSError, ImportError, ValueError) as error:  # no such file, no permission, no connection, no such protocol
        raise SettingsError([f"ROWS: {error}"]) from error


def _answerer(own: RunConfig, registered: RegisteredRef, batch_size: int | None) -> Answerer:
    served = replace(served_settings(own, registered), eval_batch_size=batch_size or own.eval_batch_size)
    return Answerer(Path(registered.base), Path(registered.adapter.path), served, registered.min_confidence)


def _parts_of_a_stream(config: RunConfig, digest: str) -> str:
    return str(Path(config.output_dir).resolve() / "predictions" / digest[:12])


def run_job(job: Job, report: Callable[[Progress], object], stream: IO[bytes] | None = None) -> Counts:
    """Answer the cases while no training uses the GPU; no model is left in memory."""
    half = max(1, job.answerer.config.eval_batch_size // 2)
    fix = f"give eval_batch_size {half}"
    with sole_use_of_gpu(f"the answers in {job.parts}", fix), free_models():
        # With an answerer of its own: the job, which outlives this call, would keep the models.
        return write_answers(replace(job, answerer=replace(job.answerer)), report, stream)


@task(task_run_name="answer {asked.rows}", cache_policy=NO_CACHE, persist_result=False, **SCORING)
def answer_rows(config: RunConfig, number: str, asked: Asked, *, again: bool) -> str:
    """Write the answers, unless they are there, and an artifact about them; returns their counts as one line.

    A retry, also on another machine, goes on after the last part next to the output.
    """
    job = open_job(config, number, asked, gpu_expected=True)
    found = None if again else read_summary(job)
    if found:
        get_run_logger().info("Nothing to do: %s has the answers of %s to these cases", asked.output, job.version)
    counts = found or run_job(job, _Report((flow_run.id, flow_run.run_count)))
    create_markdown_artifact(describe(job, counts), key="predictions", description=counts.summary)
    return counts.summary


@dataclass
class _Report:
    """Shows progress in the Prefect UI, and ends this process when its run was taken over by another."""

    attempt: tuple[str, int]
    artifact: UUID | None = None
    reported: float = 0

    def __call__(self, progress: Progress) -> None:
        if time.monotonic() - self.reported < POLL_SECONDS:
            return
        try:
            end_when_replaced(*self.attempt)
            self._show(100 * progress.done / progress.lines, str(progress))
        except (httpx.HTTPError, PrefectException) as error:
            get_run_logger().warning("Answering goes on; will try again: %s: %s", type(error).__name__, error)
        self.reported = time.monotonic()

    def _show(self, share: float, text: str) -> None:
        if self.artifact:
            update_progress_artifact(self.artifact, share, text)
            return
        artifact = create_progress_artifact(share, key="predict-progress", description=text)
        assert isinstance(artifact, UUID)  # a coroutine only where the caller is one
        self.artifact = artifact


def describe(job: Job, counts: Counts) -> str:
    """The answers in Markdown: how many there are, their decisions, and rows that have none."""
    rows = [(name, f"{count:,}", f"{count / counts.lines:.1%}") for name, count in counts.by_decision()]
    lists = (("Bad rows", counts.bad_rows), ("Answers that cannot be used", counts.unusable))
    return "\n\n".join(
        [
            f"# {counts.summary}",
            f"Answers of `{job.version}`: {in_markdown(str(job.output))}",
            Grid("Decisions", ("decision", "lines", "share"), rows).markdown(),
            *(
                "\n".join([f"**{title}**, the first", "", *(f"    {on_one_line(text)}" for text in texts)])
                for title, texts in lists
                if texts
            ),
        ]
    )
