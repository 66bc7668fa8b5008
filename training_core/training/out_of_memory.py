"""Out of memory on a GPU: one message with its fix, or smaller batches that make the same steps."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace

import torch

from training_core.config import RunConfig, SettingsError
from training_core.dataset.store import TrainingData
from training_core.packing.batches import Batches, make_batches

# In the words of the CUDA driver and of cuBLAS, which take memory past torch's allocator; not of shared memory.
_OTHER_WORDS = re.compile(r"out of memory|ALLOC_FAILED")


@contextlib.contextmanager
def explain_out_of_memory(what: str, fix: str) -> Iterator[None]:
    """Turn the GPU's out of memory in the body into a ``SettingsError`` of one sentence."""
    try:
        yield
    except RuntimeError as error:
        if not ran_out(error):
            raise
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise SettingsError([f"memory: {what} does not fit on the GPU ({reason}); {fix}"]) from error


def ran_out(error: RuntimeError) -> bool:
    """Whether the GPU's memory is what an operation lacked."""
    return isinstance(error, torch.OutOfMemoryError) or bool(_OTHER_WORDS.search(str(error)))


def is_out_of_memory(error: SettingsError) -> bool:
    """Whether smaller batches may help: a batch did not fit, or was not expected to."""
    return any(problem.startswith("memory:") for problem in error.problems)


def halved_batches(data: TrainingData, config: RunConfig, devices: int, halvings: int) -> tuple[RunConfig, Batches]:
    """The batches of a training after its tokens per batch were halved so often, and the settings for them.

    Each optimiser step keeps its rows. Raises ``SettingsError`` when the last halving made no batch smaller.
    """
    whole = make_batches(data.train, data.held_out, config, devices)
    if not halvings:
        return config, whole
    # Packs are divided: with a smaller budget they would be planned anew, with other rows in a step.
    batch_tokens = whole.train.tokens_at_most >> halvings if config.packing else None
    smaller = config if config.packing else _fewer_rows(config, halvings)
    batches = make_batches(data.train, data.held_out, smaller, devices, batch_tokens)
    _, before = halved_batches(data, config, devices, halvings - 1)
    if batches.train.tokens_at_most >= before.train.tokens_at_most:
        what = f"a batch of {batches.train.tokens_at_most:,} tokens does not fit on the GPU, and cannot be divided"
        raise SettingsError([f"max_seq_length: {what}; lower it (overlong decides on longer rows)"])
    return smaller, batches


def _fewer_rows(config: RunConfig, halvings: int) -> RunConfig:
    """Settings with fewer rows in a batch, and as many in a step."""
    at_most = max(1, config.per_device_train_batch_size >> halvings)
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    rows = next(number for number in range(at_most, 0, -1) if per_step % number == 0)
    return replace(
        config,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=per_step // rows,
        per_device_eval_batch_size=max(1, config.per_device_eval_batch_size >> halvings),
    )
