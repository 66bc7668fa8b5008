"""Rows in, a registered adapter out."""

from prefect import State, flow
from prefect.states import Completed

from flows.parameters import takes_settings
from flows.train_flow import train_flow
from tasks.data import build_dataset, validate_data
from tasks.preflight import preflight
from tasks.promotion import find_finished, promote
from tasks.recovery import limit_attempts
from tasks.refs import FinishedRun, ModelVersionRef
from tasks.registration import register_adapter
from tasks.reporting import publish_report
from tasks.train_on_pool import train_on_pool
from training_core.config import RunConfig
from training_core.utils import setup_logging

NOTHING_NEW = "NothingNew"


@flow(name="sft-flow")
@takes_settings
def sft_flow(config: RunConfig) -> FinishedRun | State[ModelVersionRef]:
    """Fine-tune an adapter on rows, judge it, register it, and promote it if it has earned that.

    When the registry holds the outcome already, the run is over at once, in a state called NothingNew.
    """
    limit_attempts()
    setup_logging()
    validate_data(config)
    dataset = build_dataset(config)
    preflight(config, dataset)
    finished = find_finished(config, dataset)
    if finished:
        return nothing_new(finished)
    trained = train_on_pool(config, dataset) if config.train_on else train_flow(config, dataset)
    version = register_adapter(config, trained)
    version = promote(config, dataset, version, trained.report)
    publish_report(config, dataset, trained, version)
    return FinishedRun(dataset, trained, version)


def nothing_new(version: ModelVersionRef) -> State[ModelVersionRef]:
    """The state of a run that had nothing to do, and what it would have ended with."""
    found = f"{version.name} version {version.version} comes from these very rows and settings"
    return Completed(name=NOTHING_NEW, message=f"nothing new: {found} ({version.verdict})", data=version)
