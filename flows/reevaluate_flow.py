"""A registered adapter judged again: on new held-out rows, or against a champion that came after it."""

from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.parameters import takes_settings
from tasks.data import build_dataset, validate_data
from tasks.evaluation import evaluate
from tasks.promotion import promote
from tasks.recovery import limit_attempts
from tasks.refs import FinishedRun, TrainedRef
from tasks.registration import fetch_registered, record_evaluation
from tasks.registry import CANDIDATE
from tasks.reporting import publish_report
from tasks.training import load_model
from training_core.config import RunConfig
from training_core.utils import setup_logging

Version = Annotated[str, Field(description="Version to judge: its number or an alias in the model registry.")]


@flow(name="reevaluate-flow")
@takes_settings
def reevaluate_flow(config: RunConfig, version: Version = CANDIDATE) -> FinishedRun:
    """Judge a registered adapter anew and promote it if it has earned that by now; nothing is trained."""
    limit_attempts()
    setup_logging()
    validate_data(config)
    dataset = build_dataset(config)
    registered = fetch_registered(config, version, dataset)
    loaded = load_model(config, registered.run)
    report = evaluate(loaded, config, registered.run, registered.adapter, dataset)
    trained = TrainedRef(registered.run, registered.adapter, report)
    judged = record_evaluation(config, trained)
    judged = promote(config, dataset, judged, report)
    publish_report(config, dataset, trained, judged)
    return FinishedRun(dataset, trained, judged)
