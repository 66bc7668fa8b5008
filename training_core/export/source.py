"""What is exported, and the files that every export has: tokenizer, chat template and the settings of decoding."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from training_core.base_weights import INDEX
from training_core.config import read_settings_file
from training_core.export.choices import Weights
from training_core.model_setup import SMALL_FILES, load_tokenizer
from training_core.prompts.chat_templates import end_of_turn

TEMPLATE_FILE, GGUF_FILE = "chat_template.jinja", "model.gguf"
_WRITTEN_ANEW = ("config.json", "generation_config.json", "chat_template.json", TEMPLATE_FILE, INDEX)


@dataclass(frozen=True)
class Source:
    """A registered adapter and its base on this machine.

    ``uri`` is the version's name in the registry, ``base_name`` the base's on the hub, or that of its folder,
    ``base_commit`` the hub's commit of it, and ``max_new_tokens`` the longest answer that was evaluated. ``weights``:
    the base's that it is merged with, as released or rounded to four bits and back, as a training over NF4 had them.
    """

    uri: str
    adapter: Path
    base: Path
    base_name: str
    base_commit: str | None
    max_new_tokens: int
    weights: Weights = "released"

    @property
    def trained_over(self) -> str:
        """How the base's linear layers were stored when it was trained: the setting ``quantisation``."""
        return str(read_settings_file(self.adapter).get("quantisation", "nf4"))

    @property
    def name(self) -> str:
        """The name of the registered model: ``models:/NAME/3`` → ``NAME``."""
        return self.uri.removeprefix("models:/").partition("/")[0]

    @property
    def served_name(self) -> str:
        """A name for servers and clusters: lower-case letters, digits and hyphens."""
        return "-".join(re.findall(r"[a-z0-9]+", self.name.lower()))[:63].strip("-") or "adapter"

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer with the template that asks as in training."""
        return load_tokenizer(self.adapter)


def write_small_files(source: Source, folder: Path) -> None:
    """The base's files without weights as released, and the chat template that asks as in training."""
    files = {path for pattern in SMALL_FILES for path in source.base.glob(pattern)}
    for path in files:
        if path.name not in _WRITTEN_ANEW:
            shutil.copyfile(path, folder / path.name)
    settings = folder / "tokenizer_config.json"
    values = json.loads(settings.read_text(encoding="utf-8"))
    values.pop("chat_template", None)  # some readers prefer it to the file
    write_json(settings, values)
    (folder / TEMPLATE_FILE).write_text(str(source.tokenizer.chat_template), encoding="utf-8")


def decoding(source: Source) -> dict[str, object]:
    """What ``generation_config.json`` says: greedy, our end of turn, no penalties, the longest answer."""
    end = end_of_turn(source.tokenizer)
    # transformers goes by do_sample, vLLM by the temperature.
    greedy = {"do_sample": False, "temperature": 0.0}
    return {**greedy, "eos_token_id": end, "pad_token_id": end, "max_new_tokens": source.max_new_tokens}


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
