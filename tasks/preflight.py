"""Checks before a GPU is requested that everything the run will need is there."""

import os
import shlex
import shutil
from pathlib import Path

import torch
from prefect import get_run_logger, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import WorkPoolStatus
from prefect.exceptions import ObjectNotFound

from tasks.artifact_store import open_folder, store_problems
from tasks.recovery import NETWORK
from tasks.refs import DatasetRef
from tasks.registry import another_base
from tasks.servers import MLFLOW, require_answers
from tasks.tracking import tracking_problems
from training_core.config import RunConfig, SettingsError
from training_core.dataset.store import load_training_data
from training_core.model_setup import fetch_tokenizer
from training_core.packing.batches import make_batches
from training_core.training.compiler import compiler_problems
from training_core.training.disk_space import bytes_of_a_run
from training_core.training.gpu_check import gpu_problems
from training_core.training.memory import memory_fix
from training_core.training.memory_estimate import estimate_memory
from training_core.training.sharding import sharding_problems

GPU_MEMORY = "SFT_FLOW_GPU_GIB"

_GIB = 2**30
_BYTES_ON_A_GPU = {"fp32": 4}  # of a value; two in bf16 and fp16


@task(task_run_name="check servers, disk and memory", **NETWORK)
def preflight(config: RunConfig, dataset: DatasetRef) -> None:
    """Raise ``SettingsError`` with all problems that would end this run hours later.

    Rows and base model were checked when the dataset was built. Retried because servers are asked: one that is away
    raises ``ConnectionError``.
    """
    require_answers(MLFLOW)
    problems = [
        *tracking_problems(config),
        *store_problems(needed=config.train_on is not None),
        *disk_problems(config, trained_here=config.train_on is None),
        *(_problems_here(config) if config.train_on is None else []),
        *(_pool_problems(config.train_on, config.max_queue_hours) if config.train_on else []),
        *_memory_problems(config, dataset),
    ]
    if problems:
        raise SettingsError(problems)
    if changed := another_base(config, dataset.base_digest):
        get_run_logger().warning(changed)


def _problems_here(config: RunConfig) -> list[str]:
    """Why this machine's GPUs cannot train."""
    sharding = sharding_problems(config.sharding, torch.cuda.device_count())
    return [*gpu_problems(gpu_expected=False), *compiler_problems(), *sharding]


def disk_problems(config: RunConfig, *, trained_here: bool) -> list[str]:
    """Why the disk of ``output_dir`` is too small for a run, on the machine that trains or on the other one."""
    base = fetch_tokenizer(config.model_name, config.cache_dir, config.model_revision)
    needed = bytes_of_a_run(config, base, trained_here=trained_here)
    Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(config.output_dir).free
    if needed <= free:
        return []
    fix = "delete files, lower save_total_limit, or use a folder on another disk"
    found = f"expected {needed / _GIB:.1f} GiB free on the disk of {config.output_dir!r}, found {free / _GIB:.1f}"
    return [f"output_dir: {found}; {fix}"]


def _memory_problems(config: RunConfig, dataset: DatasetRef) -> list[str]:
    """Compare a lower bound of the memory that the training needs, computed without a GPU, with the memory of the
    pool's GPUs. The training itself measures before its first step."""
    room = os.environ.get(GPU_MEMORY)
    if not room:
        return []
    if not room.replace(".", "", 1).isdecimal():
        return [f"{GPU_MEMORY}: expected a number of GiB such as 80, got {room!r}"]
    data = load_training_data(open_folder(dataset.folder, config))
    heaviest = make_batches(data.train, data.held_out, config).train.heaviest_size()
    base = fetch_tokenizer(config.model_name, config.cache_dir, config.model_revision)
    needed = estimate_memory(base, config, heaviest, _BYTES_ON_A_GPU.get(config.precision, 2)).total
    get_run_logger().info("The training needs at least %.1f of a GPU's %s GiB memory", needed, room)
    if needed <= float(room):
        return []
    return [f"{GPU_MEMORY}: GPUs have {room} GiB, the training needs at least {needed:.1f}; {memory_fix(config)}"]


def _pool_problems(train_on: str, queue_hours: float) -> list[str]:
    """A pool without a worker is no problem, only a warning: a worker may start while the training waits."""
    with get_client(sync_client=True) as client:
        try:
            pool = client.read_deployment_by_name(train_on).work_pool_name
        except ObjectNotFound:
            fix = "create train-flow/gpu with python -m deployments.deploy, or leave train_on empty to train here"
            return [f"train_on: found no deployment {train_on!r} on {client.api_url}; {fix}"]
        if pool is None:
            return [f"train_on: {train_on!r} has no work pool, so no worker can take its runs; deploy it to a pool"]
        status = client.read_work_pool(pool).status
    if status is not WorkPoolStatus.READY:
        paused = status is WorkPoolStatus.PAUSED
        state = "is paused" if paused else "has no worker online"
        words = ("work-pool", "resume") if paused else ("worker", "start", "--pool")
        fix = shlex.join(["prefect", *words, pool])
        get_run_logger().warning("Pool %s %s: the training waits up to %g hours; %s", pool, state, queue_hours, fix)
    return []
