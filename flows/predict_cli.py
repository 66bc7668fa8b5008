"""The command `predict`: a registered version answers a file of cases."""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as ProgressBar

from flows.registry_settings import OUTPUT_DIR, config_of_uri
from flows.terminal import errors, report_line
from flows.version_cli import at_least_one

if TYPE_CHECKING:
    from training_core.prediction.job import Job
    from training_core.prediction.lines import Counts

PIPE = "-"

_SECONDS_BETWEEN_LINES = 30
_MOST_SHOWN = 5


def predict(arguments: Sequence[str]) -> None:
    """Answer a file of cases; killed, the same command goes on where it was. Bad rows do not change the exit code."""
    given = parser().parse_args(arguments)
    config, number = config_of_uri(given.uri, given.output_dir)
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
    from tasks.prediction import Asked, open_job
    from training_core.utils import setup_logging

    setup_logging()
    output = None if given.output == PIPE else given.output
    with _rows(given.rows) as rows:
        asked = Asked(rows, output, "-" if given.rows == PIPE else None, given.eval_batch_size)
        job = open_job(config, number, asked, gpu_expected=False)
        _answer(job, again=given.again)


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    found = argparse.ArgumentParser(prog="sft-flow predict", allow_abbrev=False)
    found.add_argument("uri", metavar="URI", help="models:/NAME/VERSION or models:/NAME@ALIAS")
    found.add_argument(
        "rows", metavar="ROWS", help="File, folder, glob or URL of rows; answers are not needed. -: stdin"
    )
    found.add_argument("--output", metavar="FILE", required=True, help="File or URL that ends in .jsonl. -: stdout")
    found.add_argument("--again", action="store_true", help="Answer cases that are answered already.")
    found.add_argument(
        "--eval_batch_size", type=at_least_one, help="Cases per batch. Default: that of the version's run"
    )
    found.add_argument("--output_dir", default=OUTPUT_DIR, help="Folder of the runs. Default: %(default)s")
    return found


@contextlib.contextmanager
def _rows(given: str) -> Iterator[str]:
    """Where the rows are: those of standard input in a file, since they are read twice."""
    if given != PIPE:
        yield given
        return
    with tempfile.NamedTemporaryFile(prefix="sft-flow-") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        yield file.name


def _answer(job: "Job", *, again: bool) -> None:
    from tasks.prediction import run_job
    from training_core.prediction.job import read_summary

    for file, reason in job.cases.not_read.items():
        report_line(f"Not read: {file}: {reason}")
    found = read_summary(job) if job.output and not again else None
    if found:
        report_line(f"Nothing to do: {job.output} has these answers; --again computes them again")
    else:
        with _shown(job.cases.lines) as report:
            found = run_job(job, report, None if job.output else sys.stdout.buffer)
    _print(job, found)


@contextlib.contextmanager
def _shown(lines: int) -> Iterator[Any]:
    """What shows progress on standard error: a bar in a terminal, else a line now and then."""
    if not errors.is_terminal:
        yield _Lines()
        return
    with ProgressBar(BarColumn(), TextColumn("{task.description}"), console=errors) as bar:
        shown = bar.add_task("", total=lines)
        yield lambda progress: bar.update(shown, completed=progress.done, description=str(progress))


class _Lines:
    def __init__(self) -> None:
        self.last = time.monotonic()

    def __call__(self, progress: object) -> None:
        if time.monotonic() - self.last >= _SECONDS_BETWEEN_LINES:
            report_line(str(progress))
            self.last = time.monotonic()


def _print(job: "Job", counts: "Counts") -> None:
    lines = [
        *_first("Bad row ", counts.bad_rows, counts.bad),
        *_first("Unusable", counts.unusable, counts.lines - counts.bad - counts.usable),
        counts.summary,
        *(f"{count:>9,} {name}" for name, count in counts.by_decision()),
        f"Answers of {job.version} in {job.output or 'standard output'}",
    ]
    for line in lines:
        report_line(line)


def _first(what: str, texts: Sequence[str], all_of_them: int) -> list[str]:
    shown = texts[:_MOST_SHOWN]
    more = all_of_them - len(shown)
    return [*(f"{what}  {text}" for text in shown), *([f"{what}  … and {more:,} more"] if more else [])]
