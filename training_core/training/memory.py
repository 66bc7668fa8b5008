"""The memory of a training: estimated from the base's ``config.json``, then measured with its heaviest batch."""

import logging
import math
import resource
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from trl import SFTTrainer

from training_core.base_model import adapted_layers, linear_layers, load_skeleton
from training_core.config import RunConfig, SettingsError
from training_core.model_setup import fetch_tokenizer
from training_core.packing.batches import Batches, BatchSize
from training_core.training.activation_checkpointing import enable_checkpointing
from training_core.training.disk_space import adapter_parameters
from training_core.training.free_memory import memory_to_have_gib
from training_core.utils import pick_precision

logger = logging.getLogger(__name__)

_NF4 = 0.5  # bytes per weight
_NF4_SCALES = 1 / 64 + 4 / (64 * 256)  # double-quantised, of each 64 weights
_FP32 = 4
_HEAD_TILE = (4096, 32768)  # labels and tokens of the vocabulary that TRL's fused head computes at once


@dataclass(frozen=True)
class MemoryEstimate:
    """GiB of one device at the peak of a training, by what needs them."""

    linear_weights: float
    other_weights: float
    adapter: float
    gradients: float
    optimiser: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        return sum(asdict(self).values())


def estimate_memory(
    base: Path, config: RunConfig, batch: BatchSize, compute_bytes: int, devices: float = math.inf
) -> MemoryEstimate:
    """The memory of a training with this batch as its heaviest.

    Of the base only ``config.json`` is read; no GPU is needed. ``compute_bytes`` is 4 for fp32 and 2 for bf16 and fp16;
    ``devices`` that share out the base with ``sharding="fsdp"``, as many as one likes where that is not known.
    What the libraries themselves need is not counted, nor the scores of attention: its kernels keep none. Weights and
    adapter are exact to a hundredth. The total is a lower bound: on 2026-11-22 trainings of 512 to 2,048 tokens on a
    CPU needed a quarter to two fifths more where rows were packed, and up to twice as much where they were padded.
    ``measure_heaviest_batch`` was within 11%.
    """
    vocabulary = load_skeleton(base).config.vocab_size
    linear, others = _weight_bytes(base, config, compute_bytes, devices if config.sharding == "fsdp" else 1)
    trained = adapter_parameters(config, base)
    gib = {
        "linear_weights": linear,
        "other_weights": others,
        "adapter": trained * _FP32,
        "gradients": trained * _FP32,
        "optimiser": trained * _optimiser_bytes(config),
        "activations": _activation_values(base, config) * compute_bytes * batch.tokens,
        "logits": min(batch.labels, _HEAD_TILE[0]) * min(vocabulary, _HEAD_TILE[1]) * 2 * _FP32,
    }
    return MemoryEstimate(**{name: size / 2**30 for name, size in gib.items()})


def _weight_bytes(base: Path, config: RunConfig, compute_bytes: int, devices: float) -> tuple[float, float]:
    """Bytes of the linear layers' weights on one of the devices that share them, and of all others."""
    skeleton = load_skeleton(base)
    linear = sum(layer.weight.numel() for layer in linear_layers(base).values())
    others = sum(weight.numel() for weight in skeleton.parameters()) - linear
    size, scales = (_NF4, _NF4_SCALES) if config.quantisation == "nf4" else (compute_bytes, 0)
    if devices == 1:
        return linear * (size + scales), others * compute_bytes
    # The block that is computed and the next one are whole; see training.sharding for what else is.
    linear_bytes = linear * size / devices + 2 * linear * size / skeleton.config.num_hidden_layers + linear * scales
    embeddings = skeleton.get_input_embeddings().weight
    sharded = 0 if embeddings is skeleton.get_output_embeddings().weight else embeddings.numel()
    return linear_bytes, (others - sharded + sharded / devices) * compute_bytes


def _optimiser_bytes(config: RunConfig) -> int:
    """Bytes of the optimiser's two moments of one weight."""
    return 2 if config.optim.endswith("8bit") else 2 * _FP32


def _activation_values(base: Path, config: RunConfig) -> float:
    """Values per token kept for the backward pass: those of all blocks, or the inputs of all and those of one block."""
    skeleton = load_skeleton(base)
    blocks, hidden = skeleton.config.num_hidden_layers, skeleton.get_input_embeddings().embedding_dim
    results = sum(layer.out_features for layer in linear_layers(base).values()) / blocks
    # Two norms, their inputs and results; what each linear layer computes, and what a rotation, gate or sum makes.
    block = 4 * hidden + 2 * results
    if config.lora_dropout:  # each adapter keeps a masked copy of its input, and the mask
        block += 1.25 * sum(layer.in_features for layer in adapted_layers(config, base).values()) / blocks
    return blocks * hidden + 2 * block if config.gradient_checkpointing else blocks * block


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
    except torch.OutOfMemoryError as error:
        tokens = batches.train.tokens_at_most
        needed = f"the heaviest batch, {tokens:,} tokens, does not fit in {available:.1f} GiB"
        raise SettingsError([f"memory: {needed}: {memory_fix(config, tokens)}"]) from error
    rate, held_out_rate = step / batches.train.tokens_at_most, evaluation / batches.held_out.tokens_at_most
    trained = sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad)
    seconds = rate * batches.train_tokens
    seconds += held_out_rate * int(batches.held_out.tokens.sum()) * batches.steps.total / trainer.args.eval_steps
    forecast = Forecast(
        # At later batches memory also holds the accumulated gradient and the optimiser's moments.
        peak_gib=peak_memory_gib() + trained * (_FP32 + _optimiser_bytes(config)) / 2**30,
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
