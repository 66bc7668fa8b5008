"""The memory of a training, estimated from the base's ``config.json`` before anything is loaded."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

from training_core.base_model import adapted_layers, linear_layers, load_skeleton
from training_core.config import RunConfig
from training_core.packing.batches import BatchSize
from training_core.training.disk_space import adapter_parameters

_NF4 = 0.5  # bytes per weight
_NF4_SCALES = 1 / 64 + 4 / (64 * 256)  # double-quantised, of each 64 weights
FP32 = 4
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
        "adapter": trained * FP32,
        "gradients": trained * FP32,
        "optimiser": trained * optimiser_bytes(config),
        "activations": _activation_values(base, config) * compute_bytes * batch.tokens,
        "logits": min(batch.labels, _HEAD_TILE[0]) * min(vocabulary, _HEAD_TILE[1]) * 2 * FP32,
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


def optimiser_bytes(config: RunConfig) -> int:
    """Bytes of the optimiser's two moments of one weight."""
    return 2 if config.optim.endswith("8bit") else 2 * FP32


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
