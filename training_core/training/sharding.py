"""The base shared out among the devices (FSDP2): each keeps a part of every weight, and gathers a block to compute it.

Only the base is sharded, which is frozen: nothing of it is trained, saved or resumed. The adapter is whole on every
device and its gradients are averaged, as without sharding; so are checkpoints, optimiser and the adapter's files.

Source: Zhao et al. 2023, https://arxiv.org/abs/2304.11277; torch.distributed.fsdp.fully_shard.
"""

import logging

import torch
from accelerate import PartialState
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from trl import SFTTrainer

from training_core.config import SettingsError

logger = logging.getLogger(__name__)


def shard_base(model: PeftModel) -> None:
    """Share out the frozen weights of ``model`` among the processes of this training, and move it to their devices.

    A unit, which is gathered at once, is a block; one more has the rest: embeddings, last norm, head. Raises
    ``SettingsError`` when this process is the only one.
    """
    ranks = PartialState()
    if ranks.num_processes == 1:
        raise SettingsError([sharding_problem(1)])
    if isinstance(model, FSDPModule):
        return
    trained = {weight for weight in model.parameters() if weight.requires_grad}
    for weight in trained:
        weight.data = weight.data.to(ranks.device)
    _plain_four_bits(model, ranks.device)
    base = model.get_base_model()
    blocks = [module for module in base.modules() if type(module).__name__ in base._no_split_modules]
    for unit in (*blocks, model):
        # The last unit too: a checkpoint reads the weights' names on one device only, which gathers its parts anew.
        fully_shard(unit, reshard_after_forward=True, ignored_params=trained)
    base.hf_device_map = {"": ranks.device}  # where accelerate looks for it
    logger.info("Sharding: each of %d devices keeps %.2f GiB of the base", ranks.num_processes, local_gib(model))


def sharding_problem(devices: int) -> str:
    """Why a base cannot be sharded over so few devices."""
    return f"sharding: fsdp shares the base out among several GPUs, found {devices}; set sharding none"


def _plain_four_bits(model: nn.Module, device: torch.device) -> None:
    """Make four-bit weights plain tensors of bytes, which can be divided anywhere.

    bitsandbytes finds their scales, which stay whole, in the layer.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.quant_state.to(device)
            module.weight = nn.Parameter(module.weight.data.as_subclass(torch.Tensor), requires_grad=False)


def local_gib(model: nn.Module) -> float:
    """GiB of the frozen weights that this device keeps, without the scales of four-bit ones."""
    frozen = (weight for weight in model.parameters() if not weight.requires_grad)
    return sum(weight.to_local().nbytes for weight in frozen) / 2**30  # type: ignore[operator]


def average_gradients(trainer: SFTTrainer) -> None:
    """Let the trainer average the adapter's gradients over the devices, in the same way as for a base that is whole.

    accelerate would do it, but refuses models with sharded weights, although those are frozen; the trainer takes a
    model that is wrapped already as it is.
    """
    model = trainer.accelerator.prepare_model(trainer.model, evaluation_mode=True)  # computes in the run's precision
    frozen = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)
    trainer.model_wrapped = DistributedDataParallel(model)
