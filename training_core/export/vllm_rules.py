"""What vLLM does with an adapter when it loads it, read from its source: it ignores unknown layers without a word.

Read from the wheel of vLLM 0.33.0: ``lora/utils.py`` (names), ``lora/lora_model.py`` and ``lora/worker_manager.py``
(which layers it expects), ``lora/peft_helper.py`` (kinds), ``config/lora.py`` (ranks), ``model_executor/models/
qwen2.py``, ``qwen3.py``, ``qwen3_next.py``, ``qwen3_5.py``, ``qwen3_vl.py`` (``hf_to_vllm_mapper``,
``packed_modules_mapping``), ``sampling_params.py`` (stop tokens).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from training_core.base_weights import weight_files
from training_core.config import SettingsError
from training_core.export.lora import PEFT_PREFIX
from training_core.model_setup import load_tokenizer
from training_core.prompts.chat_templates import end_of_turn

VLLM = "0.33.0"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class ServedModel:
    """An architecture in vLLM: ``renamed`` has prefixes of a checkpoint and vLLM's, ``text`` is where its language
    model begins there, ``layers`` are the last names of those that an adapter may change."""

    renamed: Mapping[str, str]
    text: str
    layers: frozenset[str]

    def module(self, layer: str) -> str:
        """vLLM's name for a layer of a checkpoint: the first prefix that fits is renamed."""
        found = next((prefix for prefix in self.renamed if layer.startswith(prefix)), None)
        return layer if found is None else self.renamed[found] + layer.removeprefix(found)

    def adapts(self, layer: str) -> bool:
        """Whether vLLM applies an adapter's weights of this name."""
        module = self.module(layer)
        return module.startswith(f"{self.text}layers.") and module.rpartition(".")[2] in self.layers


_DENSE = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})
_DELTA = _DENSE | {"in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"}
_FUSED_DELTA = _DENSE | {"in_proj_qkvz", "in_proj_ba", "out_proj"}
_SEES = {
    "model.visual.": "visual.",
    "lm_head.": "language_model.lm_head.",
    "model.language_model.": "language_model.model.",
}
SERVED = {
    "Qwen2ForCausalLM": ServedModel({}, "model.", _DENSE),
    "Qwen3ForCausalLM": ServedModel({}, "model.", _DENSE),
    "Qwen3NextForCausalLM": ServedModel({}, "model.", _FUSED_DELTA),
    "Qwen3_5ForCausalLM": ServedModel({"model.language_model.": "model."}, "model.", _DELTA),
    "Qwen3_5ForConditionalGeneration": ServedModel(_SEES, "language_model.model.", _DELTA),
}


def served_model(base: Path) -> ServedModel:
    """How vLLM serves a base. Raises ``SettingsError`` where this is not known."""
    (architecture,) = json.loads((base / "config.json").read_text(encoding="utf-8"))["architectures"]
    if architecture not in SERVED:
        what = f"format: adapter needs a base of {', '.join(SERVED)}, found {architecture}"
        raise SettingsError([f"{what}; export --format merged"])
    return SERVED[architecture]


def max_lora_rank(rank: int) -> int:
    """The lowest ``--max-lora-rank`` that vLLM takes for an adapter of this rank; it rejects more than 512."""
    fitting = [one for one in RANKS if one >= rank]
    if not fitting:
        raise SettingsError([f"format: vLLM takes adapters of rank {RANKS[-1]} at most, found {rank}; export merged"])
    return fitting[0]


def adapter_problems(adapter: Path, base: Path) -> list[str]:
    """In what a vLLM that serves ``base`` would not do as the adapter in this folder says; most would be in silence."""
    layers = _layers(adapter)
    return [*_ignored(layers, base), *_half_adapted(layers), *_never_ending(adapter, base)]


def _layers(adapter: Path) -> list[str]:
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as weights:
        names = sorted(weights.keys())
    return [name.removeprefix(PEFT_PREFIX).rpartition(".lora_A.")[0] for name in names if ".lora_A." in name]


def _ignored(layers: Sequence[str], base: Path) -> list[str]:
    served, released = served_model(base), weight_files(base)
    ignored = [layer for layer in layers if not served.adapts(layer) or f"{layer}.weight" not in released]
    if not ignored:
        return []
    what = f"it would ignore {len(ignored)} of {len(layers)} layers, the first is {ignored[0]}"
    return [f"vLLM {VLLM} knows no such layers of this base: {what}"]


def _half_adapted(layers: Sequence[str]) -> list[str]:
    """vLLM reads the parts of its fused projection in their order, and cannot place the second without the first."""
    blocks = {layer.removesuffix("in_proj_z") for layer in layers if layer.endswith("in_proj_z")}
    if not (alone := sorted(block for block in blocks if f"{block}in_proj_qkv" not in layers)):
        return []
    fix = "train with target_modules auto, or both in_proj_qkv and in_proj_z"
    return [f"vLLM {VLLM} loads no adapter with {alone[0]}in_proj_z and without in_proj_qkv; {fix}"]


def _never_ending(adapter: Path, base: Path) -> list[str]:
    """vLLM ends an answer at the tokens of the base's tokenizer and ``generation_config.json``, whatever else is
    set."""
    end, tokenizer = end_of_turn(load_tokenizer(adapter)), load_tokenizer(base)
    settings = base / "generation_config.json"
    values = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    named = values.get("eos_token_id")
    ends = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None}
    if end in ends:
        return []
    fix = f'send "stop_token_ids": [{end}] with every request, or export --format merged'
    return [f"vLLM {VLLM} ends answers of this base at {sorted(ends)}, the adapter ends them with {end}; {fix}"]
