"""Base job templates of the work pools: Prefect's own template for each kind of pool, plus what sft-flow needs."""

import os
from pathlib import Path
from typing import Any, Literal

import yaml
from prefect.workers.base import BaseWorker

from flows.cli import ENVIRONMENT
from tasks.recovery import HEARTBEAT

PoolKind = Literal["process", "docker", "kubernetes"]
Changes = tuple[dict[str, Any], dict[str, dict[str, Any]]]

KUBERNETES_JOB = Path(__file__).parent / "kubernetes_job.yaml"
# As in the Dockerfile; a test compares Dockerfile, docker and Kubernetes.
WORK_FOLDER = "/work"
USER = 10001

RUN_ENVIRONMENT = {
    **ENVIRONMENT,
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT.seconds),
    "PYTHONSAFEPATH": "1",  # a flows/ or tasks.py in the worker's folder must not take the place of ours
}
# A worker passes its own Prefect settings on, and its home is a folder that the container does not have.
CONTAINER_ENVIRONMENT = {**RUN_ENVIRONMENT, "PREFECT_HOME": f"{WORK_FOLDER}/.prefect"}

# Variables that a container gets from its worker's environment; the server never has their values.
FROM_THE_WORKER = (
    *("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    *("PREFECT_UI_URL", "SFT_FLOW_MLFLOW_URL"),
    *("SFT_FLOW_STORE", "SFT_FLOW_SECRET", "SFT_FLOW_ALLOWED_ROOTS", "SFT_FLOW_ALLOWED_FUNCTIONS", "HF_TOKEN"),
    *("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    *("AWS_DEFAULT_REGION", "SFT_FLOW_GPU_GIB"),
)


def base_job_template(kind: PoolKind, gpu: bool) -> dict[str, Any]:
    """The base job template of a work pool; the CPU and the GPU pool differ in defaults only.

    Images are ``$SFT_FLOW_IMAGE:cpu`` and ``:gpu``, by default ``sft-flow``. Raises ``ValueError`` when the package of
    the kind's worker is not installed.
    """
    worker = BaseWorker.get_worker_class_from_type(kind)
    if worker is None:
        raise ValueError(f"a work pool of kind {kind} needs its extra: pip install '.[{kind}]'")
    template = worker.get_default_base_job_template()
    job, variables = {"process": _process, "docker": _docker, "kubernetes": _kubernetes}[kind](gpu)
    template["job_configuration"] |= job
    properties = template["variables"]["properties"]
    for name in job.keys() & properties.keys() - variables.keys():
        del properties[name]  # its value is the pool's
    for name, change in variables.items():
        properties[name] = properties.get(name, {}) | change
    return template


def _process(_gpu: bool) -> Changes:
    # None of these is a variable: whoever starts a run would choose its program, and the folder that it may read.
    return {"command": None, "env": RUN_ENVIRONMENT, "working_dir": "."}, {
        # A worker that streams output notices a killed process only when no child of it holds the pipe open.
        "stream_output": {"default": False},
    }


def _docker(gpu: bool) -> Changes:
    job = {
        "container_create_kwargs": {
            "user": f"{USER}:{USER}",
            "init": True,
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "shm_size": "{{ shm_size }}",
            "device_requests": "{{ device_requests }}",
        },
    }
    gpus = [{"driver": "nvidia", "count": 1, "capabilities": [["gpu"]]}] if gpu else None
    return job, {
        "env": {"default": CONTAINER_ENVIRONMENT | {name: f"{{{{ ${name} }}}}" for name in FROM_THE_WORKER}},
        "image": {"default": _image(gpu)},
        "volumes": {"default": [f"sft-flow-{_side(gpu)}:{WORK_FOLDER}"]},
        # The worker reads the exit code when the output has ended. Without output, or when the container removed
        # itself, it takes 0, and a killed run for a success.
        "stream_output": {"default": True},
        "auto_remove": {"default": False},
        "shm_size": _variable("Shared memory", "string", "Size of /dev/shm.", "8g" if gpu else "1g"),
        "device_requests": _variable("GPUs", "array", "As in docker-py; count -1: all GPUs of the machine.", gpus),
    }


def _kubernetes(gpu: bool) -> Changes:
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}] if gpu else []
    return {"job_manifest": yaml.safe_load(KUBERNETES_JOB.read_text(encoding="utf-8"))}, {
        "env": {"default": CONTAINER_ENVIRONMENT},
        "namespace": {"default": "sft-flow"},
        "image": {"default": _image(gpu)},
        "finished_job_ttl": {"default": 24 * 60 * 60},
        "secret_name": _variable("Secret", "string", "Secret whose keys become environment variables.", "sft-flow"),
        "volume_claim": _variable("Volume claim", "string", "Claim mounted at /work.", f"sft-flow-{_side(gpu)}"),
        "shm_size": _variable("Shared memory", "string", "Size of /dev/shm.", "8Gi" if gpu else "1Gi"),
        "gpus": _variable("GPUs", "integer", "Limit of nvidia.com/gpu for one run.", 1 if gpu else None),
        "node_selector": _variable("Node selector", "object", "Labels that a node must have.", {}),
        "tolerations": _variable("Tolerations", "array", "Taints of nodes that the pod tolerates.", tolerations),
    }


def _side(gpu: bool) -> str:
    return "gpu" if gpu else "cpu"


def _image(gpu: bool) -> str:
    return f"{os.environ.get('SFT_FLOW_IMAGE', 'sft-flow')}:{_side(gpu)}"


def _variable(title: str, kind: str, description: str, default: object) -> dict[str, Any]:
    """The schema of a template variable; without a default, the parts of the job that use it are left out."""
    schema = {"title": title, "type": kind, "description": description}
    return schema if default is None else schema | {"default": default}
