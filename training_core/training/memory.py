"""The memory of a training, measured with its heaviest batch, and what to change where it does not fit."""

import logging
import resource
import time
from dataclasses import dataclass
from datetime import timedelta

import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from trl import SFTTrainer

from training_core.config import RunConfig, SettingsError
from training_core.model_setup import fetch_tokenizer
from training_core.packing.batches import Batches
from training_core.training.activation_checkpointing import enable_checkpointing
from training_core.training.free_memory import memory_to_have_gib
from training_core.training.memory_estimate import FP32, estimate_memory, optimiser_bytes
from training_core.training.out_of_memory import ran_out
from training_core.utils import pick_precision

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Forecast:
    """GiB at the peak of a training, GiB that the process can have; seconds of the training and of this measurement.

    ``batch_tokens``: tokens of the heaviest batch.
    """

    peak_gib: float
    available_gib: float
    seconds: float
    measured_in_seconds: float
    batch_tokens: int = 0


def measure_heaviest_batch(
    trainer: SFTTrainer, batches: Batches, config: RunConfig, share_left: float = 1.0
) -> Forecast:
    """Measure forward and backward passes of the heaviest batch, and a forward pass of the heaviest held-out one.

    The weights do not change; the caller seeds the random numbers again. ``share_left`` is the share of the steps that
    is left to train. Raises ``SettingsError`` when the batch does not fit in the GPU's memory.
    """
    started = time.monotonic()
    available = memory_to_have_gib()
    if not torch.cuda.is_available():
        _require_estimate(available, batches, config)
    try:
        step, evaluation = _measure(trainer, batches, config)
    except RuntimeError as error:
        if not ran_out(error):
            raise
        tokens = batches.train.tokens_at_most
        needed = f"the heaviest batch, {tokens:,} tokens, does not fit in {available:.1f} GiB"
        raise SettingsError([f"memory: {needed}: {memory_fix(config, tokens)}"]) from error
    rate, held_out_rate = step / batches.train.tokens_at_most, evaluation / batches.held_out.tokens_at_most
    trained = sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad)
    seconds = rate * batches.train_tokens
    seconds += held_out_rate * int(batches.held_out.tokens.sum()) * batches.steps.total / trainer.args.eval_steps
    forecast = Forecast(
        # At later batches memory also holds the accumulated gradient and the optimiser's moments.
        peak_gib=peak_memory_gib() + trained * (FP32 + optimiser_bytes(config)) / 2**30,
        available_gib=available,
        seconds=share_left * seconds / batches.steps.devices,
        measured_in_seconds=time.monotonic() - started,
        batch_tokens=batches.train.tokens_at_most,
    )
    logger.info(
        "Expected: %.2f of %.1f GiB at the peak, %s (measured in %.1f s)",
        forecast.peak_gib,
        forecast.available_gib,
        timedelta(seconds=round(forecast.seconds)),
        forecast.measured_in_seconds,
    )
    return forecast


def _require_estimate(available: float, batches: Batches, config: RunConfig) -> None:
    """Without a GPU nothing is raised when memory runs out: the system ends the process."""
    base = fetch_tokenizer(config.model_name, config.cache_dir, config.model_revision)
    compute_bytes = pick_precision(config.precision).dtype.itemsize
    needed = estimate_memory(base, config, batches.train.heaviest_size(), compute_bytes, batches.steps.devices).total
    logger.info("The training needs at least %.2f of %.1f GiB", needed, available)
    require_memory(Forecast(needed, available, 0, 0, batches.train.tokens_at_most), config)


def _measure(trainer: SFTTrainer, batches: Batches, config: RunConfig) -> tuple[float, float]:
    """Seconds of the heaviest training batch and of the heaviest held-out batch."""
    model = trainer.model
    if config.gradient_checkpointing:
        enable_checkpointing(model)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    model.train()
    step = _seconds(trainer, batches.train.heaviest_batch, backward=True)
    model.eval()
    with torch.no_grad():
        evaluation = _seconds(trainer, batches.held_out.heaviest_batch, backward=False)
    model.train()
    return step, evaluation


def _seconds(trainer: SFTTrainer, batch: Dataset, *, backward: bool) -> float:
    """Of the second pass: the first one also compiles kernels and asks for memory."""
    _pass(trainer, batch, backward=backward)
    return _pass(trainer, batch, backward=backward)


def _pass(trainer: SFTTrainer, batch: Dataset, *, backward: bool) -> float:
    inputs = send_to_device(trainer.data_collator(list(batch)), trainer.accelerator.device)
    started = time.monotonic()
    with trainer.accelerator.autocast():
        loss = -trainer.model(**inputs, use_cache=False, fused_lm_head=True).log_probs.mean()
    if backward:
        loss.backward()
        trainer.model.zero_grad()
    loss.item()  # waits for the GPU
    return time.monotonic() - started


def require_memory(forecast: Forecast, config: RunConfig) -> None:
    """Raise ``SettingsError`` when the training needs more memory than there is."""
    if forecast.peak_gib > forecast.available_gib:
        needed = f"the training needs {forecast.peak_gib:.1f} GiB, {forecast.available_gib:.1f} are free"
        raise SettingsError([f"memory: {needed}: {memory_fix(config, forecast.batch_tokens)}"])


def memory_fix(config: RunConfig, batch_tokens: int = 0) -> str:
    """The next setting to change for less memory, and its new value; a step keeps its rows as long as possible.

    ``batch_tokens``: the tokens of a pack that does not fit. Packs may be smaller than the settings allow.
    """
    if not config.gradient_checkpointing:
        return "set gradient_checkpointing true"
    rows, length = config.per_device_train_batch_size, config.max_seq_length
    smaller = [rows >> halvings for halvings in range(1, rows.bit_length())]
    if config.packing and batch_tokens:
        smaller = [fewer for fewer in smaller if fewer * length < batch_tokens]
    if smaller:
        batches = rows * config.gradient_accumulation_steps // smaller[0]
        return f"set per_device_train_batch_size {smaller[0]} and gradient_accumulation_steps {batches}"
    if config.quantisation == "none":
        return "set quantisation nf4"
    if config.sharding == "none" and torch.cuda.device_count() > 1:
        return "set sharding fsdp"
    return f"set max_seq_length {length // 2} (overlong decides on longer rows), or use a smaller base"


def peak_memory_gib() -> float:
    """The peak memory of this process so far: GPU memory, with what its allocator keeps, or RAM without a GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
