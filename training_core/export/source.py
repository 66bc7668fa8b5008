"""What is exported, and the files that every export has: tokenizer, chat template and the settings of decoding."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from training_core.base_weights import INDEX
from training_core.config import Constrain, read_settings_file
from training_core.export.choices import Weights
from training_core.model_setup import SMALL_FILES, load_tokenizer
from training_core.prompts.chat_templates import end_of_turn
from training_core.training.adapter import SCHEMA_FILE

TEMPLATE_FILE, GGUF_FILE = "chat_template.jinja", "model.gguf"
_WRITTEN_ANEW = ("config.json", "generation_config.json", "chat_template.json", TEMPLATE_FILE, INDEX)


@dataclass(frozen=True)
class Source:
    """A registered adapter and its base on this machine.

    ``uri`` is the version's name in the registry, ``base_name`` the base's on the hub, or that of its folder,
    ``base_commit`` the hub's commit of it, and ``max_new_tokens`` the longest answer that was evaluated. ``weights``:
    the base's that it is merged with, as released or rounded to four bits and back, as a training over NF4 had them.
    ``constrain``: what the answers were held to when they were judged.
    """

    uri: str
    adapter: Path
    base: Path
    base_name: str
    base_commit: str | None
    max_new_tokens: int
    weights: Weights = "released"
    constrain: Constrain = "none"

    @property
    def trained_over(self) -> str:
        """How the base's linear layers were stored when it was trained: the setting ``quantisation``."""
        return str(read_settings_file(self.adapter).get("quantisation", "nf4"))

    @property
    def schema(self) -> Path | None:
        """The form that its answers were held to in the evaluation; ``None``: any JSON object, or free text."""
        return self.adapter / SCHEMA_FILE if self.constrain == "schema" else None

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
    """The base's files without weights as released, the chat template that asks as in training, and the form that
    answers were held to, where they were."""
    files = {path for pattern in SMALL_FILES for path in source.base.glob(pattern)}
    for path in files:
        if path.name not in _WRITTEN_ANEW:
            shutil.copyfile(path, folder / path.name)
    settings = folder / "tokenizer_config.json"
    values = json.loads(settings.read_text(encoding="utf-8"))
    values.pop("chat_template", None)  # some readers prefer it to the file
    write_json(settings, values)
    (folder / TEMPLATE_FILE).write_text(str(source.tokenizer.chat_template), encoding="utf-8")
    write_form(source, folder)


def write_form(source: Source, folder: Path) -> None:
    """The form of the answers as a JSON schema, where they were held to one."""
    if source.schema:
        shutil.copyfile(source.schema, folder / SCHEMA_FILE)


def form_usage(source: Source) -> str:
    """How a server holds answers to the form that they were judged in, in Markdown; empty where they were free."""
    if not source.schema:
        return ""
    request = '{"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": …}}}'
    return f"""
Answers were held to the form in `{SCHEMA_FILE}` when it was judged. A server holds them to it when requests say
`{request}` with that form.
"""


def decoding(source: Source) -> dict[str, object]:
    """What ``generation_config.json`` says: greedy, our end of turn, no penalties, the longest answer."""
    end = end_of_turn(source.tokenizer)
    # transformers goes by do_sample, vLLM by the temperature.
    greedy = {"do_sample": False, "temperature": 0.0}
    return {**greedy, "eos_token_id": end, "pad_token_id": end, "max_new_tokens": source.max_new_tokens}


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
