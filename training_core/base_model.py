"""The base model before its weights are loaded: its folder, its skeleton, and the layers that get an adapter."""

import os
import textwrap
from functools import lru_cache
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from training_core.config import RunConfig, SettingsError

PROJECT = Path(__file__).parents[1]

# What transformers and torch raise for a config.json that they cannot read, do not know, or cannot build a model from;
# found by setting each field of one to wrong values. They declare no exception of their own for it.
_UNUSABLE_CONFIG = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, ImportError, RuntimeError),
    StrictDataclassError,
)
_LONGEST_CAUSE = 200


def base_folder(model_name: str) -> Path | None:
    """The folder in the working directory, or the one that ships with the project; ``None`` for a name on the hub."""
    places = (Path(model_name), PROJECT / model_name)
    # Unlike Path.is_dir, os.path.isdir accepts a name of any length.
    return next((place.resolve() for place in places if os.path.isdir(place)), None)  # noqa: PTH112


def default_qwen_target_modules() -> list[str]:
    """All linear layers of a Qwen2/Qwen3 block: QLoRA needs adapters on every one of them to match full fine-tuning.

    Source: Dettmers et al. 2023, https://arxiv.org/abs/2305.14314, section 4.
    """
    return ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def target_modules(config: RunConfig) -> list[str]:
    """The names in ``target_modules``, as in peft: a layer's full name or the end of it."""
    if config.target_modules == "auto":
        return default_qwen_target_modules()
    return [name.strip() for name in config.target_modules.split(",") if name.strip()]


def load_skeleton(base: Path) -> PreTrainedModel:
    """The base model without weights, on torch's meta device; only ``config.json`` is read.

    Every caller gets the same model and must not change it. Raises ``SettingsError`` when transformers cannot build a
    model from the file.
    """
    try:
        return _build(base, (base / "config.json").read_bytes())
    except _UNUSABLE_CONFIG as error:
        cause = textwrap.shorten(f"{type(error).__name__}: {error}", _LONGEST_CAUSE, placeholder=" …")
        fix = "give a causal language model that the installed transformers knows"
        problem = f"model_name: cannot build a model from {base / 'config.json'}: {cause}; {fix}"
        raise SettingsError([problem]) from error


@lru_cache(maxsize=4)
def _build(base: Path, content: bytes) -> PreTrainedModel:
    """``content`` is a part of the key: a config.json that has changed is read again."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(base, trust_remote_code=False), trust_remote_code=False
        )
    return model


def linear_layers(base: Path) -> dict[str, nn.Linear]:
    """The linear layers by full name, without the output head: those that are quantised and can have an adapter.

    The head is left out because the loss multiplies by its weights directly, so that its adapter would never train.
    """
    model = load_skeleton(base)
    head = model.get_output_embeddings()
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer is not head}


def adapted_layers(config: RunConfig, base: Path) -> dict[str, nn.Linear]:
    """The layers that get an adapter, by full name: those that peft's matching finds for ``target_modules``.

        q_proj,layers.0.mlp.up_proj
        → model.layers.0.self_attn.q_proj, model.layers.0.mlp.up_proj, model.layers.1.self_attn.q_proj, …

    Raises ``SettingsError`` with a line for each name that matches no layer, or one that is not in ``linear_layers``;
    ``auto`` must find at least one of its layers.
    """
    linear, modules = linear_layers(base), dict(load_skeleton(base).named_modules())
    matches = {name: _matching(name, modules) for name in target_modules(config)}
    adapted = {layer: linear[layer] for layers in matches.values() for layer in layers if layer in linear}
    bad = {name: found for name, found in matches.items() if not found or not linear.keys() >= set(found)}
    if bad and not (adapted and config.target_modules == "auto"):
        choices = ", ".join(sorted({layer.rpartition(".")[2] for layer in linear})) or "none"
        of_base = f"of {config.model_name!r}; its linear layers: {choices}"
        if config.target_modules == "auto":
            raise SettingsError([f"target_modules: auto, which is {', '.join(bad)}, matches no layer {of_base}"])
        raise SettingsError([f"target_modules: {name!r} {_why(found, base)} {of_base}" for name, found in bad.items()])
    return adapted


def _matching(name: str, modules: dict[str, nn.Module]) -> list[str]:
    return [module for module in modules if module == name or module.endswith(f".{name}")]


def _why(matches: list[str], base: Path) -> str:
    """Why the modules that a name matches cannot have an adapter."""
    linear = linear_layers(base)
    other = next((module for module in matches if module not in linear), None)
    return f"is {_kind(other, load_skeleton(base))}" if other else "matches no layer"


def _kind(name: str, model: PreTrainedModel) -> str:
    module = model.get_submodule(name)
    if module is model.get_output_embeddings():
        return "the output head"
    if isinstance(module, nn.Embedding):
        return "an embedding"
    if "Norm" in type(module).__name__:
        return "a norm"
    return "a block" if next(module.children(), None) is not None else f"a {type(module).__name__}"
