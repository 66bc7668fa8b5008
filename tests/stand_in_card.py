"""A device without hardware: its tensors are kept and computed by the CPU, but refuse to mix with those of the CPU.

So code that makes a tensor without `device=`, or reads one as NumPy, fails here as it would on a GPU. Where the code
asks `torch.cuda` or `is_cuda`, it finds no GPU. Registered for the whole process, so use it in a process of its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

CARD = "card"
_ATEN = torch.ops.aten
# CUDA takes indices on the CPU, and copies from and to it.
_MIXING = {_ATEN.copy_, _ATEN._to_copy, _ATEN.to, _ATEN.index, _ATEN.index_put, _ATEN.index_put_}


class CardTensor(Tensor):
    """A tensor on the card; `kept` is the same on the CPU."""

    kept: Tensor

    @staticmethod
    def __new__(cls, kept: Tensor) -> "CardTensor":
        layout = {"strides": kept.stride(), "storage_offset": kept.storage_offset(), "dtype": kept.dtype}
        made: CardTensor = Tensor._make_wrapper_subclass(cls, kept.size(), device=f"{CARD}:0", **layout)
        made.kept = kept
        return made

    @classmethod
    def __torch_function__(cls, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.tolist:
            return args[0].kept.tolist()
        if function in (Tensor.numpy, Tensor.__array__):
            raise TypeError("cannot convert a tensor on a card to NumPy")
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(function, args, kwargs or {})


class _OnCard(TorchDispatchMode):
    """Also for what is made on the card from nothing."""

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(function, args, kwargs or {})


def _compute(function: Any, args: Any, kwargs: Any) -> Any:
    given = tree_leaves((args, kwargs))
    here = [leaf for leaf in given if isinstance(leaf, CardTensor)]
    elsewhere = [leaf for leaf in given if isinstance(leaf, Tensor) and not isinstance(leaf, CardTensor) and leaf.ndim]
    if here and elsewhere and function.overloadpacket not in _MIXING:
        raise RuntimeError(f"{function}: expected all tensors on the card, found {elsewhere[0].shape} on the CPU")
    devices = [leaf for leaf in given if isinstance(leaf, torch.device)] or [leaf.device for leaf in here]
    found = function(*tree_map(_on_cpu, args), **tree_map(_on_cpu, kwargs))
    if not devices or devices[0].type != CARD:
        return found
    with torch.inference_mode(False):  # else a view of a weight would be another kind of tensor than the weight
        return tree_map(lambda leaf: CardTensor(leaf) if isinstance(leaf, Tensor) else leaf, found)


def _on_cpu(leaf: Any) -> Any:
    if isinstance(leaf, torch.device):
        return torch.device("cpu")
    return leaf.kept if isinstance(leaf, CardTensor) else leaf


def insert_card() -> None:
    """Register the card; before the first gradient, since autograd then counts devices."""
    _setup_privateuseone_for_python_backend(CARD)


@contextmanager
def use_card() -> Iterator[None]:
    """In the body `device="card"` works."""
    torch._C._set_only_lift_cpu_tensors(True)  # else torch.tensor copies to the device where no mode sees it
    with _OnCard():
        yield


def move_to_card(model: nn.Module) -> None:
    """Put all weights and buffers on the card."""
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(CardTensor(weight.data), requires_grad=weight.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, CardTensor(buffer))
