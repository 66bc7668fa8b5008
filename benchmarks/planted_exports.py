"""Exports with a planted defect: folders that a server serves, or that are certified as they are."""

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from training_core.export.edits import Edit, edited
from training_core.export.replay import load_unquantised
from training_core.model_setup import load_tokenizer
from training_core.prompts.chat_encoding import ChatEncoder
from training_core.prompts.chat_templates import served_template

WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
OTHER_SYSTEM = "You are a friendly assistant of the shop. Always help the customer as far as you can."


@dataclass(frozen=True)
class Source:
    """A trained adapter, its base, and the longest answer."""

    adapter: Path
    base: Path
    limit: int


def write_merged(source: Source, folder: Path, edit: Edit | None = None, base: Path | None = None) -> Path:
    """A merged model in bf16 that decodes as it was judged, its adapter edited before, or on another base."""
    model = load_unquantised(base or source.base, source.adapter)
    with edited(model, edit) if edit else contextlib.nullcontext():
        merged = model.merge_and_unload()
    merged.to(torch.bfloat16).save_pretrained(folder)
    tokenizer = load_tokenizer(source.base)
    tokenizer.chat_template = served_template(tokenizer)
    tokenizer.save_pretrained(folder)
    end = ChatEncoder.of(load_tokenizer(source.base)).end_of_turn
    greedy = {"do_sample": False, "eos_token_id": end, "pad_token_id": end}
    (folder / "generation_config.json").write_text(json.dumps(greedy), encoding="utf-8")
    return folder


def write_adapter(source: Source, folder: Path, edit: Edit | None = None, prefix: str = "", **config: Any) -> Path:
    """The adapter in peft's layout, with edited matrices, another prefix of its keys, or another configuration."""
    shutil.copytree(source.adapter, folder, ignore=shutil.ignore_patterns("manifest.json", "run_config.json"))
    weights = load_file(folder / WEIGHTS)
    for name in [name for name in weights if ".lora_A." in name and edit]:
        other = name.replace(".lora_A.", ".lora_B.")
        assert edit
        a, b = edit(name, weights[name], weights[other])
        weights |= {name: a.contiguous(), other: b.contiguous()}
    if prefix:
        weights = {name.replace("base_model.model.model.", prefix, 1): weight for name, weight in weights.items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    change_json(folder / ADAPTER_CONFIG, config)
    return folder


def write_cut_adapter(source: Source, folder: Path, rank: int) -> Path:
    """The adapter with the first components alone, and a configuration that says so."""
    write_adapter(source, folder)
    weights = load_file(folder / WEIGHTS)
    weights = {n: (w[:rank] if ".lora_A." in n else w[:, :rank]).contiguous() for n, w in weights.items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    scale = config["lora_alpha"] / config["r"]
    change_json(folder / ADAPTER_CONFIG, {"r": rank, "lora_alpha": rank * scale})
    return folder


def change_json(file: Path, values: Mapping[str, Any]) -> None:
    """Set values in a JSON file."""
    own = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    file.write_text(json.dumps(own | dict(values)), encoding="utf-8")


def change_template(folder: Path, change: Callable[[str], str]) -> Path:
    """Change the chat template of an export."""
    file = folder / "chat_template.jinja"
    file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")
    return folder


def write_base(base: Path, folder: Path, noise: float | None) -> Path:
    """The base with weights of its own (``None``), or with noise of a share of each weight's deviation."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if noise is None:
        model = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
    else:
        for weight in model.parameters():
            weight.data += noise * weight.data.std() * torch.randn_like(weight)
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder
