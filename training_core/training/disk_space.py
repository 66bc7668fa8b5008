"""The disk space that a run needs, computed before it starts."""

from pathlib import Path

from training_core.base_model import adapted_layers
from training_core.config import RunConfig
from training_core.model_setup import SMALL_FILES

_BYTES_OF_A_WEIGHT = 4


def adapter_parameters(config: RunConfig, base: Path) -> int:
    """The number of weights in the adapter; of the base only ``config.json`` is read.

    A layer with m inputs and n outputs gets r·(m + n) of them.

    Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1.
    """
    layers = adapted_layers(config, base).values()
    return sum(config.lora_r * (layer.in_features + layer.out_features) for layer in layers)


def bytes_of_a_run(config: RunConfig, base: Path, *, trained_here: bool) -> int:
    """About how many bytes a run writes to ``output_dir``, without rows.

    The adapter and its copy in the registry; and with ``trained_here`` the checkpoints, one more than are kept, because
    a new one is written before an old one is deleted.
    """
    weights = _BYTES_OF_A_WEIGHT * adapter_parameters(config, base)
    tokenizer = sum(path.stat().st_size for pattern in SMALL_FILES for path in base.glob(pattern))
    checkpoint = 3 * weights + tokenizer  # the optimiser keeps two moments of every weight
    checkpoints = config.save_total_limit + 1 if trained_here else 0
    return checkpoints * checkpoint + 2 * (weights + tokenizer)
