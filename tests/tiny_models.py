"""Random models of a few thousand parameters, of the two architectures that are trained here, and tiny trainings."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from training_core.config import RunConfig

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


def tiny_training(base: Path, rows: Path, folder: Path, **settings: Any) -> RunConfig:
    """Settings of a few steps of two rows, large enough that every weight moves."""
    places = {"model_name": str(base), "dataset_path": str(rows), "output_dir": str(folder / "runs")}
    return RunConfig(**places, per_device_train_batch_size=2, learning_rate=1e-2, **settings)
