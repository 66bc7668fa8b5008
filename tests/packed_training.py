"""Random rows that share prefixes, and their gradients apart and packed."""

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import tiny_model
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from training_core.packing.attention import use_shared_prefix_attention
from training_core.packing.plan import PackingPlan, collate_pack, packed_dataset, plan_packing

VOCABULARY = 96


def build(architecture: str, **settings: Any) -> PreTrainedModel:
    return tiny_model(architecture, **{"vocab_size": VOCABULARY} | settings)


def random_rows(seed: int, policies: int = 3, cases: int = 4, policy_tokens: int = 60) -> Dataset:
    """A random tree: a system text, policies, sometimes a shared opening of the cases, then case and
    answer."""
    random = np.random.default_rng(seed)

    def text(low: int, high: int) -> list[int]:
        return random.integers(0, VOCABULARY, random.integers(low, high)).tolist()

    rows = []
    system = text(0, 40)
    for policy in (text(policy_tokens // 2, policy_tokens) for _ in range(policies)):
        opening = text(0, 50) if random.random() < 0.5 else []
        for _ in range(random.integers(1, cases + 1)):
            prompt = system + policy + (opening if random.random() < 0.7 else []) + text(1, 20)
            answer = text(1, 12)
            rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return Dataset.from_list([rows[i] for i in random.permutation(len(rows))])


def adapted(model: PreTrainedModel, seed: int = 0) -> PeftModel:
    """A LoRA on every linear layer with random weights, so that every gradient is non-zero."""
    torch.manual_seed(seed)
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))


def gradients(model: PeftModel) -> dict[str, torch.Tensor]:
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    model.zero_grad()
    assert found
    return found


def train_apart(model: PeftModel, rows: Dataset) -> tuple[float, dict[str, torch.Tensor]]:
    """Summed loss and gradients of rows that pass through the model one by one."""
    total = 0.0
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        loss = cross_entropy(logits.float(), torch.tensor(row["labels"][1:]), reduction="sum")
        loss.backward()
        total += loss.item()
    return total, gradients(model)


def train_packed(model: PeftModel, packs: Dataset) -> tuple[float, dict[str, torch.Tensor]]:
    use_shared_prefix_attention(model)
    total = 0.0
    for pack in packs:
        inputs = collate_pack([pack])
        inputs.pop("labels")
        logits = model(**inputs).logits[0]
        loss = cross_entropy(logits.float(), inputs["shift_labels"][0], reduction="sum")
        loss.backward()
        total += loss.item()
    return total, gradients(model)


def largest_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest relative error of a weight's gradient, in the Euclidean norm."""
    assert ours.keys() == theirs.keys()
    return max(((ours[n] - theirs[n]).norm() / theirs[n].norm()).item() for n in theirs)


def packed(rows: Dataset, **settings: int) -> Dataset:
    return packed_dataset(rows, planned(rows, **settings).packs)


def planned(rows: Dataset, **settings: int) -> PackingPlan:
    defaults = {"token_budget": 400, "rows_per_step": 8, "seed": 0}
    return plan_packing(rows, **(defaults | settings))


def relative_error(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    """Of all gradients taken as one vector, in the Euclidean norm."""
    difference = torch.cat([(found[name].float() - exact[name]).flatten() for name in exact])
    return (difference.norm() / torch.cat([gradient.flatten() for gradient in exact.values()]).norm()).item()
