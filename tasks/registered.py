"""A registered version, fetched to this machine: adapter and base, the settings it was trained with, and its rows."""

import json
from dataclasses import replace
from pathlib import Path

from datasets import Dataset

from tasks.artifact_store import open_folder
from tasks.refs import DatasetRef, FolderRef, RegisteredRef
from tasks.registry import fetch_version
from tasks.tracking import DATASET_TAG, connect
from tasks.versions import named_version, settings_of
from training_core.config import RunConfig, SettingsError
from training_core.data_loader import prepare_data
from training_core.dataset.store import HELD_OUT_FILE, TrainingData, load_training_data


def fetch_registered(config: RunConfig, number: str) -> RegisteredRef:
    """The version of this number, downloaded and verified; its base has the commit that it was trained with."""
    version = named_version(config, number)
    assert version
    own = registered_settings(config, number)
    return fetch_version(replace(config, model_name=own.model_name, model_revision=own.model_revision), version)


def registered_settings(config: RunConfig, number: str) -> RunConfig:
    """The settings that the version was trained with, with the output folder of ``config``."""
    return replace(settings_of(config, number), output_dir=config.output_dir)


def served_settings(own: RunConfig, registered: RegisteredRef) -> RunConfig:
    """Settings of a version's training, with those that its answers are served with: the registry's come first."""
    longest = registered.max_new_tokens or own.eval_max_new_tokens
    return replace(own, eval_max_new_tokens=longest, constrain=registered.constrain)


def registered_dataset(config: RunConfig, registered: RegisteredRef) -> DatasetRef:
    """The dataset that the version was trained on. Raises ``SettingsError`` when its MLflow run does not name it."""
    tags = connect(config).get_run(registered.run.tracking_run_id).data.tags
    if DATASET_TAG not in tags:
        raise SettingsError([f"URI: the MLflow run of version {registered.version} does not name its rows"])
    values = json.loads(tags[DATASET_TAG])
    return DatasetRef(**values | {"folder": FolderRef(**values["folder"])})


def registered_data(config: RunConfig, registered: RegisteredRef) -> TrainingData:
    """The rows that the version was trained and evaluated on. Raises ``FileNotFoundError`` when they are gone."""
    return load_training_data(open_folder(registered_dataset(config, registered).folder, config))


def rows_to_ask(settings: RunConfig, registered: RegisteredRef, rows: str) -> Dataset:
    """All rows of a file, folder, glob or URL as held-out rows of the version, encoded for its base."""
    # Not fit to train on, which nobody wants: each row is held out, and so a duplicate among those to train on.
    given = replace(settings, dataset_path=rows, eval_path=rows, overlap="allow")
    return Dataset.from_file(str(prepare_data(given, Path(registered.base)) / HELD_OUT_FILE))
