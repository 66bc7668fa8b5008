"""Rows of one policy through gated DeltaNet: `python -m benchmarks.hybrid` prints CPU seconds and gradients.

A random four-bit Qwen3.5 of 11 million parameters computes the same rows one by one, and as packs that share the
policy, in turn.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.rows import SMALL_QWEN3, Architecture, RowSet, write_base
from training_core.config import read_settings
from training_core.model_setup import load_model_and_tokenizer
from training_core.packing.attention import use_shared_prefix_attention
from training_core.packing.plan import collate_pack, packed_dataset, plan_packing

SMALL_QWEN3_5: Architecture = SMALL_QWEN3 | {
    "model_type": "qwen3_5_text",  # three of four layers are gated DeltaNet
    **{"linear_num_key_heads": 4, "linear_num_value_heads": 8},
    **{"linear_key_head_dim": 32, "linear_value_head_dim": 32},
}
REPEATS = 3


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_base(SMALL_QWEN3_5, Path(folder))
        config = read_settings({"model_name": folder, "lora_dropout": 0, "gradient_checkpointing": False})
        model = load_model_and_tokenizer(config).model.train()
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # zeros at first, and then most gradients are too
            torch.nn.init.normal_(weight, std=0.02)
    use_shared_prefix_attention(model)
    for rows in (RowSet(800, 8, 1), RowSet(800, 32, 1)):
        sys.stdout.write(f"{rows.name}: {compare(model, rows.make(SMALL_QWEN3_5['vocab_size']))}\n")


def compare(model: PeftModel, rows: Dataset) -> str:
    """The median cost of each way, what sharing gains, and how far its gradient is from that of rows one by one."""
    budget = sum(map(len, rows["input_ids"]))
    alone = [pack for row in range(len(rows)) for pack in _packs(rows.select([row]), budget, 1)]
    together, sharing = (_packs(rows, budget, most) for most in (1, len(rows)))
    seconds: dict[str, list[float]] = {"one by one": [], "packed": [], "sharing": []}
    gradients: dict[str, Tensor] = {}
    computed = {
        "one by one": lambda: _backward(model, alone),
        "packed": lambda: _backward(model, together),
        "sharing": lambda: _backward(model, sharing),
    }
    for _ in range(REPEATS):
        for name, compute in computed.items():
            seconds[name].append(_cpu_seconds(compute))
            gradients[name] = _gradient(model)
    costs = {name: median(found) for name, found in seconds.items()}
    times = ", ".join(f"{name} {cost:.2f} CPU s" for name, cost in costs.items())
    apart = (gradients["sharing"] - gradients["one by one"]).norm() / gradients["one by one"].norm()
    return f"{times}: {costs['one by one'] / costs['sharing']:.1f}x; gradients differ by {apart:.0e}"


def _packs(rows: Dataset, budget: int, rows_per_prefix: int) -> Dataset:
    return packed_dataset(rows, plan_packing(rows, budget, len(rows), 0, rows_per_prefix).packs)


def _backward(model: PeftModel, packs: Iterable[dict[str, Any]]) -> None:
    for pack in packs:
        inputs = collate_pack([pack])
        labels = inputs.pop("shift_labels")[0]
        del inputs["labels"]
        cross_entropy(model(**inputs).logits[0], labels, reduction="sum").backward()


def _cpu_seconds(compute: Callable[[], object]) -> float:
    started = time.process_time()
    compute()
    return time.process_time() - started


def _gradient(model: PeftModel) -> Tensor:
    found = torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])
    model.zero_grad()
    return found


if __name__ == "__main__":
    main()
