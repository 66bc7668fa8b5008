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


def default_qwen_target_modules(base: Path | None = None) -> list[str]:
    """What ``auto`` means for a base: every linear layer but the output head; without one, those of Qwen2 and Qwen3.

    QLoRA needs adapters on all of them to match full fine-tuning (Dettmers et al. 2023, arXiv:2305.14314, section 4).
    So they are read from the model: in Qwen3.5 and Qwen3-Next three of four layers are gated DeltaNet, whose five (two
    and one) projections have names of their own, and a fixed list would leave them without an adapter. The small ones,
    of decay and learning rate, are included: Megatron-Bridge adapts them too, and SGLang serves such adapters
    (sgl-project/sglang#30499). Rotations, norms and the convolution are no linear layers.
    """
    if base is None:
        return ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return sorted({name.rpartition(".")[2] for name in linear_layers(base)})


def target_modules(config: RunConfig, base: Path) -> list[str]:
    """The names in ``target_modules``, as in peft: a layer's full name or the end of it."""
    if config.target_modules == "auto":
        return default_qwen_target_modules(base)
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
    """The linear layers by full name, without the output head: those that NF4 quantises and that can have an adapter.

    The head is left out because the loss multiplies by its weights directly, so that its adapter would never train.
    """
    model = load_skeleton(base)
    head = model.get_output_embeddings()
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer is not head}


def adapted_layers(config: RunConfig, base: Path) -> dict[str, nn.Linear]:
    """The layers that get an adapter, by full name: those that peft's matching finds for ``target_modules``.

        q_proj,layers.0.mlp.up_proj
        → model.layers.0.self_attn.q_proj, model.layers.0.mlp.up_proj, model.layers.1.self_attn.q_proj, …

    Raises ``SettingsError`` with a line for each name that matches no layer, or one that is not in ``linear_layers``,
    and when there is none.
    """
    linear, modules = linear_layers(base), dict(load_skeleton(base).named_modules())
    if not linear:
        raise SettingsError([f"model_name: {config.model_name!r} has no linear layer that could have an adapter"])
    matches = {name: _matching(name, modules) for name in target_modules(config, base)}
    bad = {name: found for name, found in matches.items() if not found or not linear.keys() >= set(found)}
    if bad:
        of_base = f"of {config.model_name!r}; its linear layers: {', '.join(default_qwen_target_modules(base))}"
        raise SettingsError([f"target_modules: {name!r} {_why(found, base)} {of_base}" for name, found in bad.items()])
    return {layer: linear[layer] for layers in matches.values() for layer in layers}


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
