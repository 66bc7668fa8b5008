"""The attention of packed rows: a row attends to its prefix and to itself, never to another row of its pack.

It is registered through transformers' public interfaces and changes no model code. `training_core.packing.plan` defines
the layout of a pack.
"""

from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from training_core.base_support import other_attention, packing_problem
from training_core.packing.blocks import Heads, attend_in_blocks, block_mask, pad_to_blocks, runs_in_blocks
from training_core.packing.deltanet import share_states

ATTENTION_NAME = "shared_prefix"


def register_shared_prefix_attention() -> None:
    """Register the attention "shared_prefix" with transformers; for inputs without `segments` it is plain SDPA."""
    AttentionInterface.register(ATTENTION_NAME, shared_prefix_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)


def use_shared_prefix_attention(model: PreTrainedModel | PeftModel) -> None:
    """Prepare `model` for packs: its attention becomes "shared_prefix", and its backbone gets two hooks.

    Training on packs equals training on separate rows, except that rows that share a prefix share its dropout mask of
    LoRA; with `lora_dropout=0` it is exact. Other inputs go through the model as before.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if others := other_attention(base):
        raise ValueError(packing_problem(base, others))
    if base.config._attn_implementation == ATTENTION_NAME:
        return
    register_shared_prefix_attention()
    base.set_attn_implementation(ATTENTION_NAME)
    share_states(base.modules())
    base.base_model.register_forward_pre_hook(_replace_mask, with_kwargs=True)
    base.base_model.register_forward_hook(_keep_label_positions, with_kwargs=True)


def _replace_mask(
    backbone: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Build the attention mask once for all layers; transformers takes masks by type of layer as they are."""
    segments = kwargs.get("segments")
    if segments is None:
        return None
    inputs, mask = kwargs, segments[None, None]
    if runs_in_blocks(backbone, segments, attend_in_segments):
        inputs = pad_to_blocks(kwargs, Heads.of(backbone.config))
        mask = block_mask(inputs["segments"], inputs["position_ids"].shape[1])
    # Nothing continues a pack: a cache would keep the keys of all its rows, and no state that is of use.
    return args, inputs | {"attention_mask": {"full_attention": mask, "linear_attention": None}, "use_cache": False}


def _keep_label_positions(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Give the head only the hidden states that predict a label: [1, T, hidden] -> [1, m, hidden]."""
    if kwargs.get("label_positions") is not None:
        output.last_hidden_state = output.last_hidden_state.index_select(1, kwargs["label_positions"])
    return output


def shared_prefix_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention of a pack: `query` [1, heads, T, d], `key`, `value` [1, fewer, T, d] -> [1, T, heads, d].

    A `BlockMask` is computed with flex_attention, on GPUs that can; all else with one SDPA call per segment.
    """
    segments = kwargs.get("segments")
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if isinstance(attention_mask, BlockMask):
        output = attend_in_blocks(query, key, value, attention_mask, scaling=kwargs["scaling"])
    else:
        output = attend_in_segments(query, key, value, segments, scaling=kwargs["scaling"], dropout=kwargs["dropout"])
    return output.transpose(1, 2).contiguous(), None


def attend_in_segments(
    query: Tensor, key: Tensor, value: Tensor, segments: Tensor, *, scaling: float, dropout: float = 0.0
) -> Tensor:
    """One SDPA call per segment: a dense mask would compute every pair of tokens and discard most."""
    lengths, prefixes = segments.T.tolist()
    key, value = without_groups(query, key, value)
    # Not slices: the gradient of each slice would be as large as the pack.
    queries, keys, values = (states.split(lengths, dim=2) for states in (query, key, value))
    attend = partial(scaled_dot_product_attention, scale=scaling, dropout_p=dropout, enable_gqa=True)
    outputs = []
    for own, prefix in enumerate(prefixes):
        if prefix < 0:
            outputs.append(attend(queries[own], keys[own], values[own], is_causal=True))
            continue
        seen_keys = torch.cat([keys[prefix], keys[own]], dim=2)
        seen_values = torch.cat([values[prefix], values[own]], dim=2)
        mask = query.new_ones(lengths[own], seen_keys.shape[2], dtype=torch.bool).tril(lengths[prefix])
        outputs.append(attend(queries[own], seen_keys, seen_values, attn_mask=mask))
    return torch.cat(outputs, dim=2)


def without_groups(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """On a GPU, keys and values [B, fewer, t, d] as often as there are heads of queries; elsewhere as they are.

    With fewer of them, and a mask, or no flash attention for the card, a GPU has only the kernel that keeps all scores.
    """
    if not query.is_cuda:
        return key, value
    times = query.shape[1] // key.shape[1]
    return key.repeat_interleave(times, dim=1), value.repeat_interleave(times, dim=1)
