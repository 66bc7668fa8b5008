"""Completions that continue cached prefixes: one copy of a prefix's keys, values and states serves all of its rows.

The attention is registered through transformers' public interfaces; gated DeltaNets continue a copy of their states.
Source of the method: Hydragen (arXiv:2402.05099).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import sdpa_mask

from training_core.packing.attention import without_groups
from training_core.packing.deltanet import Continued, share_states

ATTENTION_NAME = "cached_prefix"


class CachedPrefix(NamedTuple):
    """The prefix of the next `rows` rows of a batch; `cache` holds its keys, values and states, as a batch of one."""

    rows: int
    cache: DynamicCache


@contextmanager
def continue_prefixes(model: PeftModel, prefixes: Sequence[CachedPrefix]) -> Iterator[None]:
    """Let batches of `model` continue `prefixes`, at positions after them; without prefixes prompts are whole."""
    if not prefixes:
        yield
        return
    AttentionInterface.register(ATTENTION_NAME, cached_prefix_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)

    caches = [prefix.cache for prefix in prefixes for _ in range(prefix.rows)]
    no_gaps = torch.zeros(len(caches), dtype=torch.long, device=model.device)

    def add_prefixes(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        mask = kwargs["attention_mask"]
        gaps = no_gaps if mask is None else (mask == 0).sum(1)
        return args, kwargs | {"prefixes": prefixes, "continued": Continued(caches, gaps)}

    base = model.get_base_model()
    share_states(base.modules())
    before = base.config._attn_implementation
    base.set_attn_implementation(ATTENTION_NAME)
    try:
        # `generate` rejects keywords that it does not know, so a hook adds this one.
        with base.base_model.register_forward_pre_hook(add_prefixes, with_kwargs=True):
            yield
    finally:
        base.set_attn_implementation(before)


def cached_prefix_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention to prefix and row: `query` [B, heads, s, d], `key`, `value` [B, fewer, t, d] -> [B, s, heads, d].

    `attention_mask` [B, 1, s, t] masks the row's own tokens; None: causal. `prefixes` are in the order of the rows.
    """
    tokens, own_tokens = query.shape[2], key.shape[2]
    if attention_mask is None:
        attention_mask = query.new_ones(len(query), 1, tokens, own_tokens, dtype=torch.bool).tril(own_tokens - tokens)
    attend = partial(_attend_together if tokens == 1 else _attend_one_by_one, scaling=kwargs["scaling"])
    rows = [prefix.rows for prefix in kwargs["prefixes"]]
    layers = [prefix.cache.layers[module.layer_idx] for prefix in kwargs["prefixes"]]
    parts = (states.split(rows) for states in (query, key, value, attention_mask))
    outputs = [attend(*states) for states in zip(*parts, layers, strict=True)]
    return torch.cat(outputs).transpose(1, 2).contiguous(), None


def _attend_one_by_one(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, prefix: DynamicLayer, *, scaling: float
) -> Tensor:
    """Many queries per row (prefill): one row at a time, so that only one copy of the prefix is made."""
    seen = pad(mask, (prefix.keys.shape[2], 0), value=True)
    outputs = []
    for q, k, v, m in zip(query.split(1), key.split(1), value.split(1), seen.split(1), strict=True):
        states = torch.cat([prefix.keys, k], 2), torch.cat([prefix.values, v], 2)
        keys, values = without_groups(q, *states)
        outputs.append(scaled_dot_product_attention(q, keys, values, m, scale=scaling, enable_gqa=True))
    return torch.cat(outputs)


def _attend_together(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, prefix: DynamicLayer, *, scaling: float
) -> Tensor:
    """One query per row (decoding): one matrix product of all rows with the prefix.

    Scores are fp32, as in SDPA's kernels: rounded to bf16 they made the output's error two to twelve times as large.
    """
    # [rows, heads of keys, queries of each, d]
    queries = query.unflatten(1, (key.shape[1], -1))[:, :, :, 0].float() * scaling
    shared = torch.einsum("rhqd,hpd->rhqp", queries, prefix.keys[0].float())
    own = torch.einsum("rhqd,rhtd->rhqt", queries, key.float()).masked_fill(~mask, -torch.inf)
    weights = torch.cat([shared, own], -1).softmax(-1).to(value.dtype)
    on_prefix, on_own = weights.split([shared.shape[-1], own.shape[-1]], -1)
    output = torch.einsum("rhqp,hpd->rhqd", on_prefix, prefix.values[0])
    output += torch.einsum("rhqt,rhtd->rhqd", on_own, value)
    return output.flatten(1, 2)[:, :, None]
