"""Random models of a few thousand parameters, of the two architectures that are trained here."""

from typing import Any

from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
ARCHITECTURES = {"qwen2": (Qwen2ForCausalLM, Qwen2Config), "qwen3": (Qwen3ForCausalLM, Qwen3Config)}


def tiny_model(architecture: str, **settings: Any) -> PreTrainedModel:
    """A model with weights from torch's present random state."""
    model_class, config_class = ARCHITECTURES[architecture]
    model: PreTrainedModel = model_class(config_class(**SIZES, **settings))
    return model
