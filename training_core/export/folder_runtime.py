"""An exported folder, run as plain transformers and peft run it: its own template, tokenizer and decoding."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from training_core.base_model import base_folder
from training_core.config import SettingsError
from training_core.export.endpoint import Messages, Reply
from training_core.export.runtimes import load_merged, load_on_base
from training_core.model_setup import load_tokenizer

ADAPTER_CONFIG, MODEL_CONFIG, GENERATION_CONFIG = "adapter_config.json", "config.json", "generation_config.json"


def require_exported(folder: Path) -> None:
    """Raise ``SettingsError`` unless the folder holds an adapter or a model that transformers can load."""
    if (folder / ADAPTER_CONFIG).is_file() or (folder / MODEL_CONFIG).is_file():
        return
    what = f"expected {ADAPTER_CONFIG} or {MODEL_CONFIG} in {folder}, found neither"
    fix = "give an exported folder, or serve it and give the server's URL"
    raise SettingsError([f"FOLDER: {what}; {fix}"])


def is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is none. Raises ``SettingsError`` for other content."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SettingsError([f"FOLDER: expected JSON in {path}: {error}; export it again"]) from error
    return found if isinstance(found, dict) else {}


def named_base(folder: Path, registered: Path) -> Path:
    """The base that an adapter's folder names, where that is a folder here; otherwise the registered one."""
    return base_folder(str(read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path") or "")) or registered


@dataclass(frozen=True)
class FolderRuntime:
    """A loaded folder; ``defaults`` are what its ``generation_config.json`` says."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerFast
    generation: GenerationConfig
    defaults: Mapping[str, Any]

    @classmethod
    def load(cls, folder: Path, registered: Path) -> "FolderRuntime":
        """Raises ``SettingsError`` when transformers or peft cannot load the folder."""
        try:
            base = named_base(folder, registered) if is_adapter(folder) else folder
            model: Any = load_on_base(base, folder)[0] if is_adapter(folder) else load_merged(folder)
            tokenizer = load_tokenizer(folder if (folder / "tokenizer_config.json").is_file() else base)
        except (OSError, ValueError, RuntimeError, LookupError, SafetensorError) as error:
            what = " ".join(str(error).split())[:200]
            raise SettingsError([f"FOLDER: cannot load {folder}: {what}; export it again"]) from error
        defaults = read_json(folder / GENERATION_CONFIG)
        return cls(model, tokenizer, _generation(model, tokenizer, defaults), defaults)

    def prompt(self, messages: Messages) -> list[int]:
        """The token ids of a question, by the folder's own template."""
        ids = self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)
        return list(map(int, ids))

    @torch.inference_mode()
    def ask(self, messages: Messages, max_tokens: int | None) -> Reply:
        """Answer as a server would; without ``max_tokens``, or above it, the folder's own limit counts."""
        started, prompt = time.monotonic(), self.prompt(messages)
        limits = [limit for limit in (max_tokens, self.defaults.get("max_new_tokens")) if limit]
        most = min(limits, default=None) or self.model.config.get_text_config().max_position_embeddings - len(prompt)
        inputs = torch.tensor([prompt], device=self.model.device)
        output = self.model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            generation_config=GenerationConfig(**self.generation.to_diff_dict() | {"max_new_tokens": int(most)}),
        )
        tokens = output[0, len(prompt) :].tolist()
        ended = bool(tokens) and tokens[-1] in _ends(self.generation)
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        reason = "stop" if ended else "length"
        return Reply(text, reason, len(prompt), len(tokens), seconds=time.monotonic() - started)


def _generation(model: Any, tokenizer: PreTrainedTokenizerFast, defaults: Mapping[str, Any]) -> GenerationConfig:
    """The folder's decoding; without one, greedy to the tokenizer's end of turn."""
    values = {name: value for name, value in defaults.items() if name not in ("max_new_tokens", "max_length")}
    if not values.get("do_sample"):  # transformers rejects settings of sampling without it
        values = {name: value for name, value in values.items() if name not in ("temperature", "top_p", "top_k")}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(**ends | {n: v for n, v in values.items() if not n.startswith("_")})
    return model.generation_config


def _ends(generation: GenerationConfig) -> list[int]:
    ends = generation.eos_token_id
    return ends if isinstance(ends, list) else [ends]
