"""The formats of an export: what writes it, what answers for it, and how it is used."""

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from training_core.config import RunConfig, SettingsError
from training_core.export.adapter import adapter_usage, write_served_adapter
from training_core.export.choices import GGUF_TYPES, FormatName, GgufType
from training_core.export.merged import merged_usage, write_merged
from training_core.export.runtimes import Conversations, ask_adapter, ask_gguf, ask_merged
from training_core.export.source import GGUF_FILE, Source, form_usage, write_form
from training_core.export.vllm_rules import VLLM, adapter_problems

_INSTALL = "pip install 'sft-flow[gguf]'"


@dataclass(frozen=True)
class Format:
    """``write(source, folder)``, then ``ask(folder, source, conversations, config)`` by the package ``runs_on``;
    ``problems(folder, base)`` are those that no answer here would show; ``usage(source, folder)`` is Markdown."""

    write: Callable[[Source, Path], None]
    ask: Callable[[Path, Source, Conversations, RunConfig], list[str]]
    runs_on: str
    problems: Callable[[Path, Path], list[str]]
    usage: Callable[[Source, Path], str]
    stands_for: str = ""

    @property
    def runtime(self) -> str:
        """What answers, with its version; empty where it is not installed."""
        if not importlib.util.find_spec(self.runs_on):
            return ""
        (package,) = set(importlib.metadata.packages_distributions()[self.runs_on])
        return f"{package} {importlib.metadata.version(package)}{self.stands_for}"

    @property
    def missing(self) -> str:
        """What to say where it is not installed."""
        return f"{self.runs_on} is not installed here; {_INSTALL}"


def formats(gguf_type: GgufType = GGUF_TYPES[0]) -> Mapping[FormatName, Format]:
    """The formats by name; ``gguf_type`` is the number format of a GGUF file's matrices."""
    return {
        "adapter": Format(
            write=write_served_adapter,
            ask=ask_adapter,
            runs_on="peft",
            problems=adapter_problems,
            usage=adapter_usage,
            stands_for=f" on the released base in 16 bits, and the loading rules of vLLM {VLLM}",
        ),
        "merged": Format(
            write=write_merged,
            ask=lambda folder, _, asked, config: ask_merged(folder, asked, config),
            runs_on="transformers",
            problems=lambda *_: [],
            usage=merged_usage,
        ),
        "gguf": Format(
            write=lambda source, folder: _write_gguf(source, folder, gguf_type),
            ask=lambda folder, _, asked, config: ask_gguf(folder, asked, config),
            runs_on="llama_cpp",
            problems=lambda *_: [],
            usage=_gguf_usage,
        ),
    }


def _write_gguf(source: Source, folder: Path, gguf_type: GgufType) -> None:
    if not importlib.util.find_spec("gguf"):
        raise SettingsError([f"format: gguf needs the packages of an extra; {_INSTALL}"])
    from training_core.export.gguf_file import write_gguf

    write_gguf(source, folder, gguf_type)
    write_form(source, folder)


def _gguf_usage(source: Source, _: Path) -> str:
    limit = source.max_new_tokens
    return f"""## Use it

```
llama-server --model {GGUF_FILE} --jinja --temp 0 --n-predict {limit} --alias {source.served_name}
```

The file holds tokenizer and chat template. A server samples at a temperature of its own unless `--temp 0` or the
request says otherwise.
{form_usage(source)}"""
