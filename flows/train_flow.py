"""The GPU stage: from encoded rows to a judged adapter. The GPU is held only while this flow runs."""

import torch
from prefect import flow

from tasks.evaluation import evaluate
from tasks.recovery import limit_attempts
from tasks.refs import DatasetRef, TrainedRef
from tasks.train_on_pool import hand_back
from tasks.training import finetune, finetune_on_all_gpus, load_model, open_run, save_adapter
from training_core.config import RunConfig
from training_core.utils import setup_logging


@flow(name="train-flow", retries=2, retry_delay_seconds=10)
def train_flow(config: RunConfig, dataset: DatasetRef) -> TrainedRef:
    """Train one adapter and judge it; a retry loads the model anew and goes on from the last complete checkpoint."""
    limit_attempts()
    setup_logging()
    run = open_run(config, dataset)
    if torch.cuda.device_count() > 1:
        finetune_on_all_gpus(config, run, dataset)
    loaded = load_model(config, run)
    finetune(loaded, config, run, dataset)
    adapter = save_adapter(loaded, config, run, dataset)
    report = evaluate(loaded, config, run, adapter, dataset)
    trained = TrainedRef(run, adapter, report)
    hand_back(trained)
    return trained
