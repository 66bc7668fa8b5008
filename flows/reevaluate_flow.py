"""Evaluates a registered adapter again: on new held-out rows, or against a newer champion."""

from typing import Annotated

from prefect import State, flow
from pydantic import Field

from flows.parameters import takes_settings
from flows.sft_flow import ended
from tasks.confinement import require_allowed
from tasks.data import build_dataset, validate_data
from tasks.evaluation import evaluate
from tasks.promotion import promote
from tasks.recovery import limit_attempts
from tasks.refs import FinishedRun, TrainedRef
from tasks.registration import fetch_registered, record_evaluation
from tasks.reporting import publish_report
from tasks.run_names import name_by_fingerprint, name_by_model
from tasks.versions import CANDIDATE
from training_core.config import RunConfig
from training_core.utils import setup_logging

Version = Annotated[str, Field(description="Version to evaluate: its number or an alias in the model registry.")]


@flow(name="reevaluate-flow", flow_run_name=name_by_model)
@takes_settings
def reevaluate_flow(config: RunConfig, version: Version = CANDIDATE) -> FinishedRun | State[FinishedRun]:
    """Evaluate a registered adapter again and promote it to champion if it is significantly better; trains nothing."""
    limit_attempts()
    setup_logging()
    require_allowed(config)
    validate_data(config)
    dataset = build_dataset(config)
    registered = fetch_registered(config, version, dataset)
    name_by_fingerprint(config, registered.run.fingerprint)
    decided = None
    while decided is None:  # once, unless the champion changes meanwhile
        report = evaluate(config, registered.run, registered.adapter, dataset)
        trained = TrainedRef(registered.run, registered.adapter, report)
        decided = promote(config, dataset, record_evaluation(config, trained), report)
    page = publish_report(config, dataset, trained, decided)
    return ended(FinishedRun(dataset, trained, decided, page))
