"""What a late server leaves of trainings in MLflow next to what counts, deleted once it is certain.

A server may do what it was asked for long after the client gave up, looked for it, and created another. So every
registration, and every start that finds its result, looks at all trainings of the registered model. The version of a
training names the one run and the one logged model that count.
"""

import logging
from collections.abc import Iterator, Mapping

from mlflow.entities import LifecycleStage, LoggedModel
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.tracking import MlflowClient

from tasks.ledger import delete_other_runs
from tasks.tracking import FINGERPRINT_TAG, connect, delete_runs, experiment_id
from tasks.versions import NAME_TAG, aliases_of, all_versions, delete_version
from training_core.config import RunConfig

logger = logging.getLogger(__name__)

Registered = Mapping[str, ModelVersion]  # the version of each run fingerprint


def delete_leftovers(config: RunConfig) -> None:
    """Delete versions, logged models and runs that were created twice for a training of ``registered_model_name``, and
    runs next to that of its ledger. Trainings without a version are left: a process may be about to register them."""
    try:
        _delete_all(connect(config), config)
    except MlflowException as error:  # they may be of other people's trainings
        if error.error_code != ErrorCode.Name(PERMISSION_DENIED):
            raise
        logger.warning("What MLflow has twice of a training was not deleted: %s", error)


def _delete_all(client: MlflowClient, config: RunConfig) -> None:
    registered = _delete_other_versions(config)
    _delete_other_models(client, config, registered)
    _delete_other_runs(client, config, registered)
    delete_other_runs(config)


def _delete_other_versions(config: RunConfig) -> Registered:
    """Delete all but the first version of each training; one with an alias was chosen by somebody, and one that is a
    copy of another was made by somebody."""
    registered: dict[str, ModelVersion] = {}
    named = aliases_of(config)
    for version in all_versions(config):
        first = registered.setdefault(version.tags.get(FINGERPRINT_TAG, version.version), version)
        if first is not version and str(version.version) not in named and not version.source.startswith("models:/"):
            delete_version(config, version)
    return registered


def _delete_other_models(client: MlflowClient, config: RunConfig, registered: Registered) -> None:
    """A model for another registered model is left: a run may be about to make it a version there."""
    for model in _models_for(client, config):
        fingerprint = model.tags.get(FINGERPRINT_TAG, "")
        if fingerprint in registered and model.artifact_location != registered[fingerprint].source:
            versions = client.search_model_versions(f"tags.`{FINGERPRINT_TAG}` = '{fingerprint}'")
            if model.artifact_location not in {version.source for version in versions}:
                _delete_model(client, model)


def _delete_model(client: MlflowClient, model: LoggedModel) -> None:
    try:
        client.delete_logged_model(model.model_id)
    except MlflowException as error:  # another process has deleted it at the same moment
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise


def _models_for(client: MlflowClient, config: RunConfig) -> Iterator[LoggedModel]:
    """All logged models that were made for versions of ``registered_model_name``."""
    own, token = f"tags.`{NAME_TAG}` = '{config.registered_model_name}'", None
    while token != "":
        page = client.search_logged_models([experiment_id(client, config)], own, page_token=token)
        yield from page
        token = page.token or ""


def _delete_other_runs(client: MlflowClient, config: RunConfig, registered: Registered) -> None:
    """A run whose deletion was interrupted is KILLED. Where somebody deleted the version's run, another one may be in
    use, for another registered model."""
    found = client.search_runs([experiment_id(client, config)], "attributes.status != 'FINISHED'")
    for run in found:
        version = registered.get(run.data.tags.get(FINGERPRINT_TAG, ""))
        unfinished = version and run.info.status in ("RUNNING", "KILLED") and run.info.run_id != version.run_id
        if version and unfinished and _is_active(client, str(version.run_id)):
            delete_runs(client, [run])


def _is_active(client: MlflowClient, run_id: str) -> bool:
    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise
        return False
