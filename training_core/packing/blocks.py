"""The attention of a pack on a GPU: flex_attention skips blocks of 128 x 128 tokens without a visible pair."""

import itertools
import logging
import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad
from transformers import PreTrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)

BLOCK = 128


class Heads(NamedTuple):
    """Heads of queries, heads of keys, and the size of each."""

    queries: int
    keys: int
    size: int

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "Heads":
        heads = config.num_attention_heads
        return cls(heads, config.num_key_value_heads, getattr(config, "head_dim", None) or config.hidden_size // heads)

    def padded(self, tokens: int) -> int:
        """The next number of tokens that is a multiple of 128 and fits the graph of every other such number.

        torch.compile takes a size of one, and sizes that are equal by chance when it compiles, for constants.
        """
        blocks = max(math.ceil(tokens / BLOCK), 3)
        return BLOCK * next(count for count in itertools.count(blocks) if count not in self)


def runs_in_blocks(backbone: PreTrainedModel, segments: Tensor, reference: Callable[..., Tensor]) -> bool:
    """Whether `backbone`'s attention of packs runs in blocks; `reference` computes the same in segments."""
    if not segments.is_cuda or backbone.config.attention_dropout:
        return False
    dtype = compute_dtype(segments.device, backbone.dtype)
    return _compiles(Heads.of(backbone.config), dtype, segments.device, reference)


def compute_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """What autocast would make of `dtype`; it does not know flex_attention."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else dtype


@cache
def _compiles(heads: Heads, dtype: torch.dtype, device: torch.device, reference: Callable[..., Tensor]) -> bool:
    """Try it: compilers, cards and head sizes differ in what they can, and no table knows all of them."""
    tokens = heads.padded(1)
    segments = torch.tensor([[BLOCK + 2, -1], [tokens - BLOCK - 2, 0]], device=device)
    generator = torch.Generator(device).manual_seed(0)
    shapes = [(1, count, tokens, heads.size) for count in (heads.queries, heads.keys, heads.keys)]
    states = [torch.randn(shape, generator=generator, dtype=dtype, device=device) for shape in shapes]
    try:
        found = _results(attend_in_blocks, states, block_mask(segments, tokens))
    except RuntimeError as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        logger.warning("Attention in segments, which is slower: flex_attention does not run here: %s", reason)
        return False
    wrong = any(map(_differ, found, _results(reference, states, segments)))
    if wrong:
        logger.warning("Attention in segments, which is slower: flex_attention computes other values than SDPA here")
    return not wrong


def _results(attend: Callable[..., Tensor], states: list[Tensor], mask: Any) -> list[Tensor]:
    """Output without and with gradients, and the gradients."""
    scaling = states[0].shape[-1] ** -0.5
    with torch.no_grad():
        output = attend(*states, mask, scaling=scaling)
    with torch.enable_grad():
        inputs = [state.detach().requires_grad_() for state in states]
        trained = attend(*inputs, mask, scaling=scaling)
        return [output, trained.detach(), *torch.autograd.grad(trained, inputs, output)]


def _differ(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).float().norm() > 0.05 * theirs.float().norm())


def attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, *, scaling: float) -> Tensor:
    """`query` [1, heads, T, d], `key`, `value` [1, fewer, T, d] -> [1, heads, T, d]; T is a multiple of 128."""
    dtype = compute_dtype(query.device, query.dtype)
    states = (state.to(dtype) for state in (query, key, value))
    return _compiled()(*states, block_mask=mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1])


@cache
def _compiled() -> Callable[..., Tensor]:
    # Without fullgraph a pack that needs one graph too many would silently be computed with a dense matrix of scores.
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


def pad_to_blocks(inputs: dict[str, Any], heads: Heads) -> dict[str, Any]:
    """A pack's `input_ids`, `position_ids` [1, T] and `segments`, with a last segment of filler tokens.

    No other segment sees the filler, and it has no label.
    """
    tokens = inputs["position_ids"].shape[1]
    filler = heads.padded(tokens) - tokens
    names = [name for name in ("input_ids", "position_ids") if inputs.get(name) is not None]
    padded = {name: pad(inputs[name], (0, filler)) for name in names}
    last = inputs["segments"].new_tensor([[filler, -1]] if filler else []).reshape(-1, 2)
    return inputs | padded | {"segments": torch.cat([inputs["segments"], last])}


def block_mask(segments: Tensor, tokens: int) -> BlockMask:
    """The mask of a pack of T tokens: which of its T/128 x T/128 blocks have visible pairs, and which have only those.

    A token sees two ranges of tokens: its prefix, and its own segment up to itself. Needs no copy to the host and, for
    a moment, T x T/128 bytes.
    """
    lengths, prefixes = segments.unbind(1)
    ends = lengths.cumsum(0)
    starts, shares = ends - lengths, prefixes >= 0
    ranges = (starts, starts[prefixes] * shares, ends[prefixes] * shares)
    own, first, end = (each.int().repeat_interleave(lengths, output_size=tokens) for each in ranges)

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return ((own[query] <= key) & (key <= query)) | ((first[query] <= key) & (key < end[query]))

    low = torch.arange(0, tokens, BLOCK, device=segments.device)
    high, query = low + BLOCK - 1, torch.arange(tokens, device=segments.device)[:, None]
    own_, first_, end_ = own[:, None], first[:, None], end[:, None]
    some = ((own_ <= high) & (low <= query)) | ((first_ <= high) & (low < end_))
    every = ((own_ <= low) & (high <= query)) | ((first_ <= low) & (high < end_))
    some, full = some.view(len(low), BLOCK, -1).any(1), every.view(len(low), BLOCK, -1).all(1)
    blocks = (*_in_order(some & ~full), *_in_order(full))
    return BlockMask.from_kv_blocks(*blocks, BLOCK_SIZE=BLOCK, mask_mod=visible, seq_lengths=(tokens, tokens))


def _in_order(table: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's number of true columns, and the columns, the true ones first."""
    columns = table.int().argsort(dim=1, descending=True, stable=True)
    return table.sum(1, dtype=torch.int32)[None, None], columns.int()[None, None]
