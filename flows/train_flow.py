"""The GPU stage: from encoded rows to a registered adapter. The GPU is occupied only while this flow runs."""

from prefect import flow

from tasks.confinement import require_allowed
from tasks.evaluation import evaluate
from tasks.recovery import TRAINING, limit_attempts, retried_if_transient
from tasks.refs import DatasetRef, TrainedRef
from tasks.registration import register_adapter
from tasks.run_names import name_by_training
from tasks.run_status import shown_as_failed
from tasks.train_on_pool import return_result
from tasks.training import finetune, open_run, publish_adapter
from training_core.config import RunConfig
from training_core.utils import setup_logging


@flow(name="train-flow", flow_run_name=name_by_training, **TRAINING)
def train_flow(config: RunConfig, dataset: DatasetRef) -> TrainedRef:
    """Train one adapter, evaluate and register it; a retry resumes from the last checkpoint.

    Wrong settings or rows end it without a retry.
    """
    limit_attempts()
    setup_logging()
    with retried_if_transient():
        require_allowed(config, dataset)
        run = open_run(config, dataset)
        with shown_as_failed(config, run):
            finetune(config, run, dataset)
            adapter = publish_adapter(config, run)
            trained = TrainedRef(run, adapter, evaluate(config, run, adapter, dataset))
            register_adapter(config, trained)
        return_result(trained)
        return trained
