"""Random models of a few thousand parameters, of the architectures that are trained here, and tiny trainings."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3_5Config,
    Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from training_core.config import RunConfig

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
# More value heads than key heads, as released.
HYBRID_SIZES: dict[str, Any] = SIZES | {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
ARCHITECTURES: dict[str, tuple[type[PreTrainedModel], Any, dict[str, Any]]] = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, SIZES),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, SIZES),
    "qwen3_5": (Qwen3_5ForCausalLM, Qwen3_5TextConfig, HYBRID_SIZES),
    "qwen3_next": (Qwen3NextForCausalLM, Qwen3NextConfig, HYBRID_SIZES | {"num_experts": 0}),
}
HYBRIDS = ("qwen3_5", "qwen3_next")
TINY_TOWER = {
    **{"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64},
    **{"patch_size": 4, "num_position_embeddings": 16},
}


def tiny_model(architecture: str, **settings: Any) -> PreTrainedModel:
    """A model with weights from torch's present random state."""
    model_class, config_class, sizes = ARCHITECTURES[architecture]
    return _with_memory(model_class(config_class(**sizes | settings)))


def tiny_multimodal_model(**settings: Any) -> PreTrainedModel:
    """Qwen3.5 as it is released, with a tower for pictures."""
    text = HYBRID_SIZES | settings
    tied = settings.get("tie_word_embeddings", False)
    config = Qwen3_5Config(text_config=text, vision_config=dict(TINY_TOWER), tie_word_embeddings=tied)
    return _with_memory(Qwen3_5ForConditionalGeneration(config))


def _with_memory(model: PreTrainedModel) -> PreTrainedModel:
    """transformers' random decays forget a state within a few tokens, and decays so strong are inexact in fp32."""
    for name, weight in model.named_parameters():
        if name.endswith("A_log"):
            torch.nn.init.uniform_(weight, 0.001, 0.1).data.log_()
    return model


def write_base(model: PreTrainedModel, tokenizer_of: Path, folder: Path) -> PreTrainedModel:
    """A base with the weights of a model and the tokenizer of another base."""
    shutil.copytree(tokenizer_of, folder, ignore=shutil.ignore_patterns("*config.json", "*.safetensors"))
    shutil.copy(tokenizer_of / "tokenizer_config.json", folder)
    model.save_pretrained(folder)
    return model


def tiny_training(base: Path, rows: Path, folder: Path, **settings: Any) -> RunConfig:
    """Settings of a few steps of two rows, large enough that every weight moves."""
    places = {"model_name": str(base), "dataset_path": str(rows), "output_dir": str(folder / "runs")}
    return RunConfig(**places, per_device_train_batch_size=2, learning_rate=1e-2, **settings)
