"""How a worker starts a run, by kind of pool: Prefect's own job templates with what this project needs."""

from typing import Any, Literal

from prefect.workers.process import ProcessWorker

from flows.cli import ENVIRONMENT

PoolKind = Literal["process", "docker", "kubernetes"]

HEARTBEAT_SECONDS = 30


def base_job_template(kind: PoolKind, gpu: bool) -> dict[str, Any]:
    """The base job template of a pool."""
    template = ProcessWorker.get_default_base_job_template()
    properties = template["variables"]["properties"]
    properties["env"]["default"] = ENVIRONMENT | {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)}
    properties["working_dir"]["default"] = "."  # the folder in which the worker was started
    # While output is streamed, the death of a run is not noticed before all of its children have closed it.
    properties["stream_output"]["default"] = False
    return template
