"""The GPU stage: from encoded rows to an evaluated adapter. The GPU is occupied only while this flow runs."""

import torch
from prefect import flow

from tasks.evaluation import evaluate
from tasks.recovery import TRAINING, limit_attempts
from tasks.refs import DatasetRef, TrainedRef
from tasks.run_names import name_by_training
from tasks.train_on_pool import return_result
from tasks.training import finetune, finetune_on_all_gpus, load_model, open_run, save_adapter
from training_core.config import RunConfig
from training_core.utils import setup_logging


@flow(name="train-flow", flow_run_name=name_by_training, **TRAINING)
def train_flow(config: RunConfig, dataset: DatasetRef) -> TrainedRef:
    """Train one adapter and evaluate it; a retry loads the model again and resumes from the last checkpoint."""
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
    return_result(trained)
    return trained
