"""Attention to cached prefixes, alone."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache

from training_core.evaluation.prefix_cache import CachedPrefix, cached_prefix_attention


def whole(query: Tensor, key: Tensor, value: Tensor, prefix: list[Tensor]) -> Tensor:
    """The same with a copy of the prefix for every row."""
    copies = [kept.expand(len(query), -1, -1, -1) for kept in prefix]
    keys, values = torch.cat([copies[0], key], 2), torch.cat([copies[1], value], 2)
    seen = torch.ones(query.shape[2], keys.shape[2], dtype=torch.bool).tril(keys.shape[2] - query.shape[2])
    return scaled_dot_product_attention(query, keys, values, seen, scale=0.1, enable_gqa=True).transpose(1, 2)


@pytest.mark.parametrize("tokens", [1, 20])
def test_cached_prefixes_err_in_bf16_as_sdpa_does(tokens: int) -> None:
    """In decoding and in prefill; the scores are large, as those of trained models are."""
    torch.manual_seed(0)
    query = (6 * torch.randn(3, 8, tokens, 64)).bfloat16()
    key, value = (torch.randn(3, 2, 20, 64).bfloat16() for _ in range(2))
    prefix = [torch.randn(1, 2, 500, 64).bfloat16() for _ in range(2)]
    cache = DynamicCache()
    cache.update(*prefix, layer_idx=0)
    inputs = {"scaling": 0.1, "prefixes": [CachedPrefix(3, cache)]}
    found, _ = cached_prefix_attention(SimpleNamespace(layer_idx=0), query, key, value, None, **inputs)
    exact = whole(query.float(), key.float(), value.float(), [kept.float() for kept in prefix])
    error, of_sdpa = ((output.float() - exact).norm() for output in (found, whole(query, key, value, prefix)))
    assert error < 2 * of_sdpa
