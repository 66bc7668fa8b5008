"""A base shared out between two devices trains the adapter that one trains which is whole on both, in less memory."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace

import torch

from benchmarks.gpu_steps.bench import Bench, settings
from benchmarks.gpu_steps.checks import Check, below, figure, holds
from benchmarks.gpu_steps.recovery import digest
from training_core.child_processes import child_process
from training_core.config import RunConfig
from training_core.trainer import load_summary

TWO_RANKS = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "training_core.child_processes"]


def sharding(bench: Bench) -> Iterator[Check]:
    """Two steps of 8 rows by two processes: the same adapter, bit by bit; on GPUs a lower peak."""
    if bench.device == "cuda" and torch.cuda.device_count() < 2:
        yield figure("sharding", "not measured: needs two GPUs")
        return
    config = settings(bench.base("7B"), max_steps=2, gradient_accumulation_steps=2, max_seq_length=512)
    whole, shared = (_train(bench, replace(config, sharding=kind)) for kind in ("none", "fsdp"))
    yield holds("exit codes", (whole[0], shared[0]), (0, 0))
    yield holds("the sharded base gives the same adapter", shared[1], whole[1])
    yield figure("peak GiB of the first device, whole base", whole[2])
    if bench.device == "cuda":
        yield below("peak GiB of the first device, sharded base", shared[2], whole[2])


def _train(bench: Bench, config: RunConfig) -> tuple[int, str, float]:
    """Exit code, the start of the adapter's SHA-256, and the peak of memory in GiB."""
    run_dir, vocabulary = bench.run_dir(config.sharding), bench.architecture("7B")["vocab_size"]
    run_dir.mkdir(parents=True)
    rows = json.dumps(asdict(bench.rows(200, 4, 2)))
    arguments = ["train", str(config.save(run_dir)), rows, str(vocabulary), str(run_dir), "0"]
    with child_process([*TWO_RANKS, "benchmarks.gpu_steps.child", *arguments]) as process:
        code = process.wait()
    return code, digest(run_dir), load_summary(run_dir).peak_memory_gib
