"""A run in this process, and what it prints at the end."""

import logging
import shlex
import time
import warnings
from datetime import timedelta

from prefect.logging.handlers import APILogWorker

from flows.reevaluate_flow import reevaluate_flow
from flows.sft_flow import sft_flow
from flows.short_logs import shorten_errors
from flows.terminal import console, print_line
from tasks.refs import FinishedRun, ModelVersionRef
from tasks.reporting import run_grids
from tasks.tracking import tracking_uri
from training_core.config import RunConfig


def run_and_print(config: RunConfig) -> None:
    """Run the flow with these settings, then print its tables, its verdict, and where its results are."""
    _quieten_libraries()
    started = time.monotonic()
    try:
        outcome: FinishedRun | ModelVersionRef = sft_flow(**vars(config))
    finally:
        APILogWorker.drain_all(timeout=10)  # the server may have stopped when this process ends
    took = timedelta(seconds=round(time.monotonic() - started))
    if isinstance(outcome, ModelVersionRef):
        lines = _nothing_new(config, outcome, took)
    else:
        lines = _finished(config, outcome, took)
    for line in [*lines, f"UIs      {shlex.join(['sft-flow', 'ui', '--output_dir', config.output_dir])}"]:
        print_line(line)


def evaluate_and_show(config: RunConfig, version: str) -> None:
    """Evaluate a registered version again; end with the tables and the verdict."""
    _quieten_libraries()
    started = time.monotonic()
    try:
        finished: FinishedRun = reevaluate_flow(**vars(config), version=version)
    finally:
        APILogWorker.drain_all(timeout=10)
    for line in _finished(config, finished, timedelta(seconds=round(time.monotonic() - started))):
        print_line(line)


def _quieten_libraries() -> None:
    """Hide messages that a user cannot act on."""
    shorten_errors()
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # Renamed for transformers 6; the ranges in pyproject.toml end before it.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    # With an input example MLflow would load the base model a second time; the signature is given instead.
    warnings.filterwarnings("ignore", message=r"[\s\S]*input example was not provided", module=r"mlflow\.")


def _nothing_new(config: RunConfig, version: ModelVersionRef, took: timedelta) -> list[str]:
    return [
        f"Nothing new: {version.name} version {version.version} was trained with the same rows and settings ({took})",
        f"Verdict  {version.verdict}",
        f"Model    models:/{version.name}/{version.version} in {tracking_uri(config)}",
    ]


def _finished(config: RunConfig, finished: FinishedRun, took: timedelta) -> list[str]:
    """Print the tables; returns the lines after them."""
    version, trained = finished.version, finished.trained
    for grid in run_grids(config, finished.dataset, trained):
        console.print(grid.terminal())
    return [
        f"{version.name} version {version.version} {version.verdict} ({took})",
        f"Adapter  {trained.adapter.path}",
        f"Model    models:/{version.name}@candidate in {tracking_uri(config)}, run {trained.run.tracking_run_id}",
        f"Rejected {finished.dataset.folder.path}/rejected.jsonl",
        f"Report   {finished.report_page}",
    ]
