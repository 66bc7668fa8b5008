"""Commands that messages name: each works as it is, apart from a word in capitals."""

import os
import shlex

from training_core.config import RunConfig, settings_info


def registry_command(config: RunConfig, *words: str, with_reason: bool = False) -> str:
    """An `sft-flow` command on the registry of these settings, from the folder in which they hold."""
    default = settings_info()["output_dir"].default
    elsewhere = config.output_dir != default and not os.environ.get("MLFLOW_TRACKING_URI")
    place = ["--output_dir", config.output_dir] if elsewhere else []
    return shlex.join(["sft-flow", *words, *place]) + " --reason TEXT" * with_reason


def mlflow_command(tracking_uri: str, *words: str) -> str:
    """A command of MLflow's own, which has no default for the store."""
    return f"MLFLOW_TRACKING_URI={shlex.quote(tracking_uri)} {shlex.join(['mlflow', *words])}"
