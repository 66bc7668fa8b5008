"""Rows in, a registered adapter out."""

from prefect import flow

from flows.parameters import takes_settings
from flows.train_flow import train_flow
from tasks.data import build_dataset, validate_data
from tasks.gpu_stage import train_on_pool
from tasks.refs import FinishedRun
from tasks.registration import promote, register_adapter
from tasks.reporting import publish_report
from training_core.config import RunConfig
from training_core.utils import setup_logging


@flow(name="sft-flow")
@takes_settings
def sft_flow(config: RunConfig) -> FinishedRun:
    """Fine-tune an adapter on rows, judge it, register it, and promote it if it has earned that."""
    setup_logging()
    validate_data(config)
    dataset = build_dataset(config)
    trained = train_on_pool(config, dataset) if config.train_on else train_flow(config, dataset)
    version = register_adapter(config, trained)
    version = promote(config, version, trained.report)
    publish_report(config, dataset, trained, version)
    return FinishedRun(dataset, trained, version)
