"""Shows in MLflow that a training has failed, and why; ``open_tracking_run`` shows that it is resumed."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from prefect import get_run_logger

from tasks.create_once import sent_once
from tasks.refs import RunRef
from tasks.tracking import connect, tag_run
from tasks.versions import RegistryError
from training_core.config import RunConfig, SettingsError
from training_core.escaping import shown

REASON_TAG = "sft_flow.failed_because"
_LONGEST_REASON = 1000


class FolderHeldError(SettingsError):
    """Another process trains in the folder of the run."""


@contextlib.contextmanager
def shown_as_failed(config: RunConfig, run: RunRef) -> Iterator[None]:
    """Give the MLflow run the state FAILED, and the reason as a tag, when the body raises an error.

    What is killed or interrupted stays RUNNING: it is resumed. So does what another process trains, which holds the
    lock of the run's folder (``FolderHeldError``). What had finished before stays so.
    """
    try:
        yield
    finally:
        error = sys.exc_info()[1]
        failed = isinstance(error, Exception) and not isinstance(error, FolderHeldError)
        if failed and Path(run.path).is_dir():  # else its store may be gone with it
            _show(config, run.tracking_run_id, f"{type(error).__name__}: {error}")


def _show(config: RunConfig, run_id: str, reason: str) -> None:
    """Only try: the error that is raised is the one to be seen."""
    try:
        with sent_once():
            tag_run(config, run_id, {REASON_TAG: shown(reason)[:_LONGEST_REASON]})
            client = connect(config)
            if client.get_run(run_id).info.status == "RUNNING":
                client.set_terminated(run_id, "FAILED")
    except (RegistryError, OSError) as error:
        get_run_logger().warning("MLflow does not show that this training has failed: %s", error)
