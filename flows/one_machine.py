"""A run in this very process, and what it prints when it is done."""

import logging
import time
from datetime import timedelta
from pathlib import Path

from rich.console import Console

from flows.sft_flow import sft_flow
from tasks.refs import FinishedRun
from tasks.registry import tracking_uri
from tasks.reporting import run_grids
from training_core.config import RunConfig
from training_core.utils import setup_logging

console = Console()


def run_and_show(config: RunConfig) -> None:
    """Run the flow with these settings; end with the tables, the verdict, and where to look."""
    setup_logging()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    started = time.monotonic()
    finished: FinishedRun = sft_flow(**vars(config))
    for grid in run_grids(config, finished.dataset, finished.trained):
        console.print(grid.terminal())
    _say_where(config, finished, timedelta(seconds=round(time.monotonic() - started)))


def _say_where(config: RunConfig, finished: FinishedRun, took: timedelta) -> None:
    version, run = finished.version, finished.trained.run
    console.print(f"[bold]{version.name} version {version.version}[/] {version.verdict} ({took})")
    console.print(f"Adapter  {finished.trained.adapter.path}")
    console.print(f"Model    models:/{version.name}@candidate in {tracking_uri(config)}")
    console.print(f"Refused  {Path(finished.dataset.path) / 'refused.jsonl'}")
    console.print(f"UIs      sft-flow ui --output_dir {config.output_dir}   (MLflow run {run.tracking_run_id})")
