"""Settings that find a model registry, from the words of a command line."""

import os
import re
from pathlib import Path

from tasks.commands import registry_command
from tasks.databases import has_content, sqlite_file
from tasks.ledger import Ledger, read_ledger
from tasks.servers import MLFLOW, PREFECT, server_problems
from tasks.tracking import tracking_problems, tracking_uri
from tasks.versions import model_names, named_version
from training_core.config import RunConfig, SettingsError, read_settings, settings_info

OUTPUT_DIR = str(settings_info()["output_dir"].default)


def registry_settings(name: str, output_dir: str) -> RunConfig:
    """Settings that find the registry. Raises ``SettingsError`` when there is none; it is never created here."""
    config = read_settings({"registered_model_name": name, "output_dir": output_dir}, stored=True)
    address = os.environ.get(MLFLOW)
    store = sqlite_file(address) if address else Path(output_dir) / "mlflow.db"
    if store and not has_content(store):
        fix = "give the --output_dir of the runs, or the address of their MLflow server in MLFLOW_TRACKING_URI"
        what = MLFLOW if address else "output_dir"
        raise SettingsError([f"{what}: expected a registry in {str(store)!r}, found none; {fix}"])
    if problems := [*server_problems(PREFECT), *tracking_problems(config)]:
        raise SettingsError(problems)
    return config


def require_model(config: RunConfig, ledger: Ledger) -> None:
    """Raise ``SettingsError`` unless the model is registered, or has decisions from a time when it was."""
    names = model_names(config)
    if config.registered_model_name not in names and not ledger.entries:
        known = f"it has {', '.join(names)}" if names else "it has no registered model"
        raise SettingsError([f"NAME: {tracking_uri(config)} has no model {config.registered_model_name!r}; {known}"])


def config_of_uri(uri: str, output_dir: str) -> tuple[RunConfig, str]:
    """Settings that find the registry, and the number of the version. Raises ``SettingsError`` when there is none."""
    parts = re.fullmatch(r"models:/([^/:@]+)(?:/(\d+)|@([^/:@]+))", uri)
    if not parts:
        raise SettingsError([f"URI: expected models:/NAME/VERSION or models:/NAME@ALIAS, got {uri!r}"])
    config = registry_settings(parts[1], output_dir)
    version = named_version(config, parts[2] or parts[3])
    if version is None:
        require_model(config, read_ledger(config))
        name = config.registered_model_name
        fix = registry_command(config, "versions", name)
        raise SettingsError([f"URI: {name} has no version or alias {parts[2] or parts[3]}; see what is there: {fix}"])
    return config, str(version.version)
