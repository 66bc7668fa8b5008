"""The whole workflow: from rows to a registered adapter."""

from prefect import State, flow
from prefect.states import Completed

from flows.parameters import takes_settings
from flows.train_flow import train_flow
from tasks.confinement import require_allowed
from tasks.data import build_dataset, validate_data
from tasks.preflight import preflight
from tasks.promotion import find_finished, promote
from tasks.recovery import limit_attempts
from tasks.refs import DatasetRef, FinishedRun, ModelVersionRef, TrainedRef
from tasks.registration import record_evaluation
from tasks.reporting import publish_missing_report, publish_report
from tasks.run_names import name_by_fingerprint, name_by_model
from tasks.train_on_pool import train_on_pool
from training_core.config import RunConfig
from training_core.training.fingerprint import run_fingerprint
from training_core.utils import setup_logging

NOTHING_NEW, CHAMPION_FAILS = "NothingNew", "ChampionFailing"


@flow(name="sft-flow", flow_run_name=name_by_model)
@takes_settings
def sft_flow(config: RunConfig) -> FinishedRun | State[ModelVersionRef] | State[FinishedRun]:
    """Fine-tune an adapter on rows, evaluate and register it, and promote it to champion if it is significantly better.

    When the registry has the result of the same rows and settings, the run ends at once in the state NothingNew. When
    the champion no longer passes on the held-out rows, the run ends in the state ChampionFailing.
    """
    limit_attempts()
    setup_logging()
    require_allowed(config)
    validate_data(config)
    dataset = build_dataset(config)
    name_by_fingerprint(config, run_fingerprint(config, dataset.digest, dataset.base_digest))
    preflight(config, dataset)
    finished = find_finished(config, dataset)
    if finished:
        publish_missing_report(config, dataset, finished)
        return nothing_new(finished)
    trained, version = _train_and_decide(config, dataset)
    page = publish_report(config, dataset, trained, version)
    return ended(FinishedRun(dataset, trained, version, page))


def _train_and_decide(config: RunConfig, dataset: DatasetRef) -> tuple[TrainedRef, ModelVersionRef]:
    """Train, evaluate and register, then decide on the version; while the champion changes meanwhile, evaluate it
    against the new one, without training it again. Returns the evaluation that was decided on, too."""
    decided, evaluation = None, 0
    while decided is None:
        evaluation += 1
        trained = train_on_pool(config, dataset, evaluation) if config.train_on else train_flow(config, dataset)
        decided = promote(config, dataset, record_evaluation(config, trained), trained.report)
    return trained, decided


def ended(finished: FinishedRun) -> FinishedRun | State[FinishedRun]:
    """How a run ends: as any other, or in a state of its own when the champion no longer passes."""
    version = finished.version
    if not version.champion_failing:
        return finished
    return Completed(name=CHAMPION_FAILS, message=f"{version.name}: {version.verdict}", data=finished)


def nothing_new(version: ModelVersionRef) -> State[ModelVersionRef]:
    """The final state of a run that found its result in the registry; its data is that version."""
    found = f"{version.name} version {version.version} was trained with the same rows and settings"
    name = CHAMPION_FAILS if version.champion_failing else NOTHING_NEW
    return Completed(name=name, message=f"nothing new: {found} ({version.verdict})", data=version)
