"""Tasks from files of rows to a folder of encoded rows."""

from pathlib import Path
from typing import Any

from prefect import State, get_run_logger, task

from tasks.refs import DatasetRef
from training_core.config import RunConfig
from training_core.data_loader import build_datasets, load_sources
from training_core.data_store import data_key, load_training_data, save_training_data
from training_core.identity import digest_rows
from training_core.model_setup import fetch_base_model, load_tokenizer
from training_core.utils import validate_args


@task(tags=["data"])
def validate_data(config: RunConfig) -> None:
    """Refuse settings and rows that cannot be trained on, with every problem at once, before anything is written."""
    validate_args(config)
    for source in load_sources(config):
        get_run_logger().info("%s: %d usable rows of %d lines", source.file, len(source.rows), source.lines)


def _may_pass(_task: object, _run: object, state: State[Any]) -> bool:
    """Retry what the network did, not what the rows are."""
    return not isinstance(state.data, ValueError)


@task(tags=["data"], retries=2, retry_delay_seconds=[5, 30], retry_condition_fn=_may_pass)
def build_dataset(config: RunConfig) -> DatasetRef:
    """Encode the rows into a folder named after all they are made from, or reuse it when it is there.

    Retried because the base model's tokenizer may have to come over the network.
    """
    base = fetch_base_model(config.model_name, config.cache_dir)
    folder = Path(config.output_dir).resolve() / "datasets" / data_key(config, base)[:12]
    try:
        data = load_training_data(folder)
        get_run_logger().info("Rows reused: nothing they are made from has changed since %s was written", folder)
    except FileNotFoundError:
        save_training_data(build_datasets(config, load_tokenizer(base)), folder)
        data = load_training_data(folder)
    return DatasetRef(str(folder), digest_rows(data.train), len(data.train), len(data.held_out))
