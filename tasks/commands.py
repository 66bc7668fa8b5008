"""Commands that messages name: each works as it is, apart from a word in capitals."""

import os
import shlex

from training_core.config import RunConfig, settings_info
from training_core.escaping import without_secrets


def registry_command(config: RunConfig, *words: str, with_reason: bool = False) -> str:
    """An `sft-flow` command on the registry of these settings, from the folder in which they hold."""
    default = settings_info()["output_dir"].default
    elsewhere = config.output_dir != default and not os.environ.get("MLFLOW_TRACKING_URI")
    place = ["--output_dir", config.output_dir] if elsewhere else []
    return shlex.join(["sft-flow", *words, *place]) + " --reason TEXT" * with_reason


def mlflow_command(tracking_uri: str, *words: str) -> str:
    """A command of MLflow's own, which has no default for the store; an address with a password is not repeated: it is
    the one in the environment already."""
    command = shlex.join(["mlflow", *words])
    if without_secrets(tracking_uri) != tracking_uri:
        return command
    return f"MLFLOW_TRACKING_URI={shlex.quote(tracking_uri)} {command}"
