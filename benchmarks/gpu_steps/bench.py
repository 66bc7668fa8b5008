"""What the steps train: random bases with Qwen's shapes, rows of random tokens, settings."""

import gc
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoConfig

from benchmarks.rows import Architecture, RowSet
from training_core.base_model import PROJECT, load_skeleton
from training_core.config import RunConfig, read_settings
from training_core.dataset.report import DataReport, Lengths
from training_core.dataset.store import TrainingData

QWEN25 = {"model_type": "qwen2", "num_hidden_layers": 28, "max_position_embeddings": 32_768}
ARCHITECTURES: dict[str, Architecture] = {
    "1.5B": QWEN25
    | {
        "vocab_size": 151_936,
        "hidden_size": 1_536,
        "intermediate_size": 8_960,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "7B": QWEN25
    | {
        "vocab_size": 152_064,
        "hidden_size": 3_584,
        "intermediate_size": 18_944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
}
# Qwen3.5's layers at the widths of 1.5B: three of four are gated DeltaNets.
ARCHITECTURES["hybrid, 4 layers"] = {
    "model_type": "qwen3_5_text",
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "vocab_size": 151_936,
    "hidden_size": 1_536,
    "intermediate_size": 8_960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "linear_num_key_heads": 12,
    "linear_num_value_heads": 12,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32_768,
}
ARCHITECTURES["1.5B, 4 layers"] = ARCHITECTURES["1.5B"] | {"num_hidden_layers": 4}
TINY_SHAPES = {
    "num_hidden_layers": 2,
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TOKENIZER = PROJECT / "samples" / "tiny_qwen"
NO_REPORT = DataReport([], [], Lengths(0, {}, [], []), 0, "", [], [], [], [])


@dataclass(frozen=True)
class Bench:
    """Where the steps run: a folder for bases and runs, and whether all is tiny."""

    folder: Path
    tiny: bool

    @property
    def device(self) -> str:
        return "cuda" if torch.cuda.is_available() else "cpu"

    def architecture(self, name: str) -> Architecture:
        found = ARCHITECTURES[name]
        tiny = TINY_SHAPES | ({"num_hidden_layers": 4} if "layer_types" in found else {})
        return found | (tiny if self.tiny else {})

    def base(self, name: str) -> Path:
        """The folder of a random base with the shapes of this name, written when it is first asked for."""
        return self.base_of(name, self.architecture(name))

    def base_of(self, name: str, architecture: Architecture) -> Path:
        """The same for any shapes."""
        folder = self.folder / name.replace(" ", "_")
        if not folder.is_dir():
            draft = self.folder / "draft"
            shutil.rmtree(draft, ignore_errors=True)
            write_base(architecture, draft, self.device)
            draft.rename(folder)
        return folder

    def run_dir(self, name: str) -> Path:
        """An empty folder for a training."""
        folder = self.folder / "runs" / name
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def rows(self, policy_tokens: int, rows_per_policy: int, policies: int) -> RowSet:
        """The rows of a step: as given, or with short policies where all is tiny."""
        return RowSet(64 if self.tiny else policy_tokens, rows_per_policy, policies)


def settings(base: Path, **values: Any) -> RunConfig:
    """The product's defaults, but a constant learning rate and no dropout; on a CPU in bf16 as on most GPUs."""
    fixed: dict[str, Any] = {"lora_dropout": 0, "lr_scheduler_type": "constant", "warmup_ratio": 0, "max_steps": 6}
    fixed |= {} if torch.cuda.is_available() else {"precision": "bf16"}
    return read_settings(fixed | {"model_name": str(base)} | values)


def training_data(train: Dataset, held_out: Dataset) -> TrainingData:
    """Rows as `train_model` takes them; nothing else of them was kept."""
    return TrainingData(train, held_out, NO_REPORT, np.empty(0, np.uint64))


def write_base(architecture: Architecture, folder: Path, device: str) -> None:
    """A base model with random bf16 weights, drawn and written layer by layer: one of 7B takes seconds on a GPU."""
    shutil.copytree(TOKENIZER, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    AutoConfig.for_model(**architecture, dtype="bfloat16").save_pretrained(folder)
    torch.manual_seed(0)
    shards: dict[str, str] = {}
    for shard, weights in _layers(folder):
        file = f"model-{shard}.safetensors"
        save_file(
            {name: _draw(name, shape, device) for name, shape in weights.items()}, folder / file, {"format": "pt"}
        )
        shards |= dict.fromkeys(weights, file)
    index = {"metadata": {}, "weight_map": shards}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _layers(folder: Path) -> Iterator[tuple[str, dict[str, torch.Size]]]:
    """The names and shapes of a base's weights, layer by layer; tied weights come once."""
    weights = {name: weight.shape for name, weight in load_skeleton(folder).named_parameters()}
    for layer, group in groupby(weights, key=lambda name: "-".join(filter(str.isdigit, name.split(".")))):
        names = list(group)
        yield layer or names[0], {name: weights[name] for name in names}


def _draw(name: str, shape: torch.Size, device: str) -> torch.Tensor:
    """Weights as transformers initialises them: norms of one, all others normal."""
    if name.endswith("norm.weight"):
        return torch.ones(shape, dtype=torch.bfloat16)
    return (0.02 * torch.randn(shape, dtype=torch.bfloat16, device=device)).cpu()


def release() -> None:
    """Give back all memory that is no longer used, and count peaks and compilations anew."""
    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
