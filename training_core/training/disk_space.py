"""What a run writes to disk, known before it starts."""

from pathlib import Path

from training_core.base_model import adapted_layers
from training_core.config import RunConfig
from training_core.model_setup import SMALL_FILES

_BYTES_OF_A_WEIGHT = 4


def adapter_parameters(config: RunConfig, base: Path) -> int:
    """The number of weights of the adapter; of the base only ``config.json`` is read.

    A layer from m to n values gets r·(m + n) of them: Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1.
    """
    layers = adapted_layers(config, base).values()
    return sum(config.lora_r * (layer.in_features + layer.out_features) for layer in layers)


def bytes_of_a_run(config: RunConfig, base: Path, *, trained_here: bool) -> int:
    """About what is written to ``output_dir`` besides rows: checkpoints, one of them in the making, where the training
    is, and the adapter with its copy in the registry."""
    weights = _BYTES_OF_A_WEIGHT * adapter_parameters(config, base)
    tokenizer = sum(path.stat().st_size for pattern in SMALL_FILES for path in base.glob(pattern))
    checkpoint = 3 * weights + tokenizer  # the optimiser keeps two numbers for every weight
    checkpoints = config.save_total_limit + 1 if trained_here else 0
    return checkpoints * checkpoint + 2 * (weights + tokenizer)
