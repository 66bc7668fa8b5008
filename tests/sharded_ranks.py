"""One of the processes that share a tiny base: what each keeps, and whether it computes as the whole base does.

`python -m sharded_ranks OUT BASE …`, started by torch's launcher, writes OUT/RANK.json.
"""

import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import PartialState
from torch.distributed.tensor import DTensor

from training_core.config import RunConfig, SettingsError
from training_core.model_setup import LoadedModel, load_model_and_tokenizer
from training_core.training import sharding
from training_core.training.activation_checkpointing import enable_checkpointing
from training_core.training.sharding import shard_base


def loss_and_gradients(loaded: LoadedModel) -> list[torch.Tensor]:
    """Of random tokens; LoRA's second matrices are moved first, since their zeros leave the others no gradient."""
    for name, weight in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(weight, 0.02)
    tokens = torch.arange(3, 60)[None]
    enable_checkpointing(loaded.model)
    loss = loaded.model.train()(input_ids=tokens, labels=tokens).loss
    loss.backward()
    return [loss.detach(), *(weight.grad for weight in loaded.model.parameters() if weight.requires_grad)]


def refusal(loaded: LoadedModel) -> str:
    """What is said where a device has no room for the whole base."""
    try:
        with patch.object(sharding, "memory_to_have_gib", return_value=0.0):
            shard_base(loaded.model)
    except SettingsError as error:
        return str(error)
    return ""


def compare(base: str, quantisation: str) -> dict[str, Any]:
    """Share of the bytes of a block that this process keeps, dtypes of sharded weights, and equality with the whole."""
    settings: dict[str, Any] = {"model_name": base, "quantisation": quantisation, "lora_dropout": 0}
    whole = loss_and_gradients(load_model_and_tokenizer(RunConfig(**settings)))
    loaded = load_model_and_tokenizer(RunConfig(**settings, sharding="fsdp"))
    too_small = refusal(loaded)
    shard_base(loaded.model)
    found = loss_and_gradients(loaded)
    named = dict(loaded.model.named_parameters())
    sharded = {name: weight for name, weight in named.items() if isinstance(weight, DTensor)}
    kept, total = sum(w.to_local().nbytes for w in sharded.values()), sum(w.nbytes for w in sharded.values())
    in_blocks = {name for name in named if ".layers." in name and "lora" not in name}
    return {
        "share": kept / total,
        "dtypes": sorted({str(weight.dtype) for weight in sharded.values()}),
        "whole_in_blocks": sorted(in_blocks - set(sharded)),
        "sharded_adapter": sorted(name for name in sharded if "lora" in name),
        "embeddings": any("embed_tokens" in name for name in sharded),
        "too_small": too_small,
        "equal": all(map(torch.equal, found, whole)),
    }


if __name__ == "__main__":
    ranks = PartialState(cpu=True)
    out, *bases = sys.argv[1:]
    cases = {f"{Path(base).name} {kind}": compare(base, kind) for base in bases for kind in ("none", "nf4")}
    (Path(out) / f"{ranks.process_index}.json").write_text(json.dumps(cases))
    ranks.destroy_process_group()
