"""What runs are called in both UIs: after the registered model and the fingerprint of the training.

A resumed or retried run keeps its name.
"""

from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from tasks.refs import DatasetRef
from training_core.config import RunConfig, settings_info
from training_core.training.fingerprint import run_fingerprint


def run_name(config: RunConfig, fingerprint: str) -> str:
    """The name of a run of this training, such as ``sft-flow-demo 092a45``."""
    return f"{config.registered_model_name} {fingerprint[:6]}"


def name_by_model() -> str:
    """For ``flow_run_name`` of a flow that takes settings: the model, until ``name_by_fingerprint`` adds the rest."""
    model = flow_run.parameters.get("registered_model_name", settings_info()["registered_model_name"].default)
    return _name_so_far(model) or str(model)


def name_by_training() -> str:
    """For ``flow_run_name`` of ``train-flow``, whose parameters are all that a fingerprint needs."""
    config: RunConfig = flow_run.parameters["config"]
    dataset: DatasetRef = flow_run.parameters["dataset"]
    return run_name(config, run_fingerprint(config, dataset.digest, dataset.base_digest))


def name_by_time() -> str:
    """For ``flow_run_name`` of a scheduled flow: its name and the minute it was scheduled for, in UTC."""
    flow = str(flow_run.flow_name).removesuffix("-flow")
    return _name_so_far(flow) or f"{flow} {flow_run.scheduled_start_time:%Y-%m-%d %H:%M}"


def name_by_fingerprint(config: RunConfig, fingerprint: str) -> None:
    """Add the fingerprint to the name of the current flow run. When the server does not answer, the run keeps its old
    name: a name is no reason to fail."""
    try:
        with get_client(sync_client=True) as client:
            client.set_flow_run_name(UUID(flow_run.id), run_name(config, fingerprint))
    except httpx.HTTPError as error:
        get_run_logger().warning("This run keeps the name %s: %s", flow_run.name, error)


def _name_so_far(first_word: str) -> str | None:
    """The current name when one of these functions made it; Prefect's own names contain no space."""
    return flow_run.name if str(flow_run.name).startswith(f"{first_word} ") else None
