"""Bases of every architecture with an adapter that changes their answers, as exports find them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_model, tiny_multimodal_model, write_base
from transformers import PreTrainedModel

from training_core.base_model import default_qwen_target_modules
from training_core.config import RunConfig
from training_core.export.source import Source
from training_core.model_setup import load_base, load_tokenizer
from training_core.training.adapter import write_adapter
from training_core.utils import pick_precision

BASES = ("qwen2", "qwen3", "qwen3_5", "multimodal")
VOCABULARY = 1000


def build(name: str, **settings: Any) -> PreTrainedModel:
    """A random model; Qwen2's head is tied to its embeddings, as in small released models."""
    torch.manual_seed(0)
    settings = {"vocab_size": VOCABULARY} | settings
    if name == "multimodal":
        return tiny_multimodal_model(**settings)
    return tiny_model(name, tie_word_embeddings=name == "qwen2", **settings)


def source_of(name: str, tokenizer_of: Path, folder: Path, **settings: Any) -> Source:
    """A base in ``folder`` / "base" and an adapter on it, with random matrices, in ``folder`` / "adapter"."""
    base, adapter = folder / "base", folder / "adapter"
    write_base(build(name, **settings), tokenizer_of, base)
    write_random_adapter(base, adapter)
    return Source("models:/policy.v1/3", adapter, base, "Qwen/Tiny", "0123abc", max_new_tokens=24)


def write_random_adapter(base: Path, folder: Path, scale: float = 0.05, quantisation: str = "none") -> None:
    """The folder that a training would have written."""
    model = load_base(base, pick_precision(), "none")
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=12, target_modules=default_qwen_target_modules(base))
    adapted = get_peft_model(model, lora)
    torch.manual_seed(1)
    for layer, weight in adapted.named_parameters():
        if "lora_" in layer:
            torch.nn.init.normal_(weight, std=scale)
    config = RunConfig(model_name=str(base), quantisation=quantisation)
    write_adapter(adapted, load_tokenizer(base), config, np.empty(0, np.uint64), folder)
