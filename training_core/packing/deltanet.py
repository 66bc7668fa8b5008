"""Gated DeltaNet of rows that share a prefix: the state that it leaves is computed once, and every row continues it.

The layers of Qwen3-Next and Qwen3.5 that are no attention see earlier tokens only through a recurrent state and the
last inputs of a short convolution (Yang et al. 2024, arXiv:2412.06464). So a copy of both is all that a row needs: that
of a pack in training, or that of a batch which continues cached prefixes.
"""

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import DynamicCache

from training_core.base_support import DELTA_FUNCTIONS, is_delta_net

CHUNK = 64  # tokens that the chunked rule computes together, by default, in transformers and flash-linear-attention

Function = Callable[..., Any]


class Continued(NamedTuple):
    """For each row of a left-padded batch the cache, of one row, that it continues, and the padded tokens before it."""

    caches: list[DynamicCache]
    gaps: Tensor


def share_states(modules: Iterable[nn.Module]) -> None:
    """Let the gated DeltaNets among `modules` take `segments` of a pack or `continued` caches; else nothing changes.

    transformers offers no interface for it. A layer looks up its convolution and its delta rule by name, and passes
    these keywords on to both; so these layers, and no others, get their own forward with two names replaced. It keeps
    the kernels that transformers found, and repeats none of the layer's formulas.
    """
    for module in modules:
        if "forward" not in vars(module) and is_delta_net(module):
            module.forward = _sharing(module).__get__(module)


def _sharing(module: nn.Module) -> FunctionType:
    forward, layer = inspect.unwrap(type(module).forward), module.layer_idx
    names = forward.__globals__
    convolve, rule = (names[name] for name in DELTA_FUNCTIONS)
    ours = (partial(_convolve, convolve, layer), partial(_apply_delta_rule, rule, layer))
    changed = names | dict(zip(DELTA_FUNCTIONS, ours, strict=True))
    return FunctionType(forward.__code__, changed, forward.__name__, forward.__defaults__, forward.__closure__)


def _convolve(
    convolve: Function,
    layer: Any,
    inputs: Tensor,
    weight: Tensor,
    *args: Any,
    segments: Tensor | None = None,
    continued: Continued | None = None,
    **kwargs: Any,
) -> Tensor:
    own = partial(convolve, **kwargs)
    if segments is not None:
        return convolve_segments(own, segments, inputs, weight, *args)
    if continued is not None:
        tails = torch.cat([cache.layers[layer].conv_states[0] for cache in continued.caches])
        return continue_convolution(own, tails, continued.gaps, inputs, weight, *args)
    return own(inputs, weight, *args)


def _apply_delta_rule(
    rule: Function,
    layer: Any,
    *inputs: Tensor,
    segments: Tensor | None = None,
    continued: Continued | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    if segments is not None:
        return apply_to_segments(rule, segments, *inputs, **kwargs)
    if continued is not None:
        states = torch.cat([cache.layers[layer].recurrent_states[0] for cache in continued.caches])
        return continue_delta_rule(rule, states, continued.gaps, *inputs, **kwargs)
    return rule(*inputs, **kwargs)


def convolve_segments(convolve: Function, segments: Tensor, inputs: Tensor, weight: Tensor, *args: Any) -> Tensor:
    """The causal convolution of a pack: `inputs` [1, channels, T] -> the same; `weight` [channels, width].

    Before each segment are the last inputs of its prefix, or zeros.
    """
    lengths, prefixes = segments.T.tolist()
    width = weight.shape[-1] - 1
    parts = inputs.split(lengths, dim=2)
    nothing = inputs.new_zeros(*inputs.shape[:2], width)
    befores = [pad(parts[prefix], (width, 0))[..., -width:] if prefix >= 0 else nothing for prefix in prefixes]
    extended = torch.cat([tensor for pair in zip(befores, parts, strict=True) for tensor in pair], dim=2)
    outputs = convolve(extended, weight, *args).split([width + length for length in lengths], dim=2)
    return torch.cat([output[..., width:] for output in outputs], dim=2)


def apply_to_segments(
    rule: Function, segments: Tensor, *inputs: Tensor, g: Tensor, beta: Tensor, **kwargs: Any
) -> tuple[Tensor, None]:
    """The gated delta rule of a pack: `inputs` are queries, keys, values [1, T, heads, d] -> [1, T, heads, d].

    First all segments without a prefix, then those that continue one. Segments with as many chunks are one batch. A
    padded token has beta 0 and no decay, and leaves the state as it is.
    """
    lengths, prefixes = segments.T.tolist()
    parts = list(zip(*(tensor[0].split(lengths) for tensor in (*inputs, g, beta)), strict=True))
    outputs: dict[int, Tensor] = {}
    states: dict[int, Tensor] = {}
    for members in _batches(lengths, prefixes):
        size = -(-lengths[members[0]] // CHUNK) * CHUNK
        *batch, decay, rate = (
            torch.stack([_pad_end(tensor, size) for tensor in tensors])
            for tensors in zip(*(parts[member] for member in members), strict=True)
        )
        continued = prefixes[members[0]] >= 0
        kwargs["initial_state"] = torch.stack([states[prefixes[member]] for member in members]) if continued else None
        kwargs["output_final_state"] = not continued
        results, ends = rule(*batch, g=decay, beta=rate, **kwargs)
        outputs |= {member: result[: lengths[member]] for member, result in zip(members, results, strict=True)}
        states |= dict(zip(members, ends, strict=True)) if not continued else {}
    return torch.cat([outputs[segment] for segment in range(len(lengths))])[None], None


def _batches(lengths: list[int], prefixes: list[int]) -> list[list[int]]:
    """The segments by prefix or not, then by number of chunks."""
    batches: dict[tuple[bool, int], list[int]] = {}
    for segment, (length, prefix) in enumerate(zip(lengths, prefixes, strict=True)):
        batches.setdefault((prefix >= 0, -(-length // CHUNK)), []).append(segment)
    return [batches[key] for key in sorted(batches)]


def _pad_end(tensor: Tensor, size: int) -> Tensor:
    return pad(tensor, (0, 0) * (tensor.ndim - 1) + (0, size - len(tensor)))


def continue_convolution(
    convolve: Function, tails: Tensor, gaps: Tensor, inputs: Tensor, weight: Tensor, *args: Any
) -> Tensor:
    """The causal convolution of rows: `inputs` [B, channels, t] -> the same; `tails` [B, channels, at least width - 1].

    Each row's tail moves over the padding to the row's first token.
    """
    width = weight.shape[-1] - 1
    extended = torch.cat([tails[..., -width:], inputs], dim=2)
    columns, gaps = torch.arange(extended.shape[2], device=inputs.device), gaps[:, None]
    sources = torch.where(columns < gaps + width, (columns - gaps).clamp(min=0), columns)
    moved = extended.gather(2, sources[:, None].expand_as(extended))
    return convolve(moved, weight, *args)[..., width:]


def continue_delta_rule(
    rule: Function, states: Tensor, gaps: Tensor, *inputs: Tensor, g: Tensor, beta: Tensor, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The gated delta rule of rows that continue `states` [B, heads, d, d]; padding leaves them as they are."""
    real = (torch.arange(g.shape[1], device=g.device) >= gaps[:, None])[..., None]
    return rule(*inputs, g=g * real, beta=beta * real, **kwargs | {"initial_state": states})
