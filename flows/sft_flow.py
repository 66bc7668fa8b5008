"""The whole workflow: from rows to a registered adapter."""

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
from tasks.run_names import name_by_fingerprint, name_by_model
from tasks.train_on_pool import train_on_pool
from training_core.config import RunConfig
from training_core.training.fingerprint import run_fingerprint
from training_core.utils import setup_logging

NOTHING_NEW = "NothingNew"


@flow(name="sft-flow", flow_run_name=name_by_model)
@takes_settings
def sft_flow(config: RunConfig) -> FinishedRun | State[ModelVersionRef]:
    """Fine-tune an adapter on rows, evaluate and register it, and promote it to champion if it is significantly better.

    When the registry has the result of the same rows and settings, the run ends at once in the state NothingNew.
    """
    limit_attempts()
    setup_logging()
    validate_data(config)
    dataset = build_dataset(config)
    name_by_fingerprint(config, run_fingerprint(config, dataset.digest, dataset.base_digest))
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
    """The final state of a run that found its result in the registry; its data is that version."""
    found = f"{version.name} version {version.version} was trained with the same rows and settings"
    return Completed(name=NOTHING_NEW, message=f"nothing new: {found} ({version.verdict})", data=version)
