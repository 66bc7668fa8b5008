"""The base shared out among the devices (FSDP2): each keeps a part of every block, and gathers one to compute it.

Only frozen weights are sharded: nothing of them is trained, saved or resumed. The adapter is whole on every device and
its gradients are averaged, as without sharding; so checkpoints, optimiser and the adapter's files are the same.

Source: Zhao et al. 2023, https://arxiv.org/abs/2304.11277; torch.distributed.fsdp.fully_shard.
"""

import logging
from typing import Literal

import torch
from accelerate import PartialState
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel
from trl import SFTTrainer

from training_core.config import SettingsError
from training_core.training.free_memory import memory_to_have_gib

logger = logging.getLogger(__name__)


def shard_base(model: PeftModel) -> None:
    """Share out the frozen weights of ``model`` among the processes of this training, and move it to their devices.

    Raises ``SettingsError`` when this process is the only one, and when one device cannot hold the base.
    """
    ranks = PartialState()
    if ranks.num_processes == 1:
        raise SettingsError(sharding_problems("fsdp", 1))
    if isinstance(model, FSDPModule):
        return
    if problems := answer_problems(local_gib(model)[1], memory_to_have_gib()):
        raise SettingsError(problems)
    units = _units(model.get_base_model())
    shared = {weight for unit in units for weight in unit.parameters() if not weight.requires_grad}
    whole = set(model.parameters()) - shared
    for weight in whole:
        weight.data = weight.data.to(ranks.device)
    for unit in (*units, model):  # the last one has no weights of its own: it starts to gather a block in time
        _make_four_bits_plain(unit, ranks.device)
        fully_shard(unit, ignored_params=whole)
    model.get_base_model().hf_device_map = {"": ranks.device}  # where accelerate looks for it
    kept, total = local_gib(model)
    logger.info("Sharding: each of %d devices keeps %.2f of the base's %.2f GiB", ranks.num_processes, kept, total)


def sharding_problems(sharding: Literal["none", "fsdp"], devices: int) -> list[str]:
    """Why a training on so many devices cannot have this ``sharding``."""
    if sharding == "none" or devices > 1:
        return []
    return [f"sharding: fsdp shares the base out among several GPUs, found {devices}; set sharding none"]


def answer_problems(base_gib: float, available_gib: float) -> list[str]:
    """Why a sharded base could be trained but not evaluated: answers need the whole base on one device."""
    if base_gib <= available_gib:
        return []
    needed = f"answers are computed on one GPU: the base needs {base_gib:.1f} GiB there, {available_gib:.1f} are free"
    return [f"sharding: {needed}; use larger GPUs or a smaller base"]


def _units(base: PreTrainedModel) -> list[nn.Module]:
    """What is gathered at once: a block; and embeddings, unless the head has them too.

    The head stays whole: TRL computes the loss with its weights, not by calling it, and needs them all the time.
    """
    blocks = [module for module in base.modules() if type(module).__name__ in base._no_split_modules]
    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    return blocks if head.weight is embeddings.weight else [embeddings, *blocks]


def _make_four_bits_plain(unit: nn.Module, device: torch.device) -> None:
    """Make four-bit weights plain bytes, which FSDP2 divides and gathers next to any other dtype.

    bitsandbytes finds their scales, which stay whole, in the layer.
    """
    for module in unit.modules():
        if isinstance(module, Linear4bit) and not isinstance(module.weight, DTensor):
            module.quant_state.to(device)
            module.weight = nn.Parameter(module.weight.data.as_subclass(torch.Tensor), requires_grad=False)


def local_gib(model: nn.Module) -> tuple[float, float]:
    """GiB of the frozen weights that this device keeps, and of all; without the scales of four-bit ones."""
    frozen = [weight for weight in model.parameters() if not weight.requires_grad]
    kept = sum((weight.to_local() if isinstance(weight, DTensor) else weight).nbytes for weight in frozen)
    return kept / 2**30, sum(weight.nbytes for weight in frozen) / 2**30


def average_gradients(trainer: SFTTrainer) -> None:
    """Let the trainer average the adapter's gradients over the devices, in the same way as for a base that is whole.

    accelerate would do it, but refuses a model with sharded weights, although these are frozen; the trainer takes a
    model that is wrapped already as it is.
    """
    model = trainer.accelerator.prepare_model(trainer.model, evaluation_mode=True)  # computes in the run's precision
    frozen = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)
    trainer.model_wrapped = DistributedDataParallel(model)
