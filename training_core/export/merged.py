"""One model of base and adapter: merged from the base as released, file by file, in 16 bits."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from training_core.base_weights import INDEX, weight_files
from training_core.config import SettingsError
from training_core.export.lora import Lora, linear_layers_as_released, read_lora
from training_core.export.source import Source, decoding, form_usage, write_json, write_small_files


def write_merged(source: Source, folder: Path) -> None:
    """Write a model that plain transformers loads: weights, configuration, tokenizer, template, settings of decoding.

    Weights keep the names and files of the released base, also those of a part that sees. In memory is one file of the
    base at a time. Raises ``SettingsError`` as ``read_lora`` does.
    """
    lora, files = lora_to_merge(source), weight_files(source.base)
    config = json.loads((source.base / "config.json").read_text(encoding="utf-8"))
    shortened = _released_format(config) == "float32"
    size = 0
    for file in sorted(set(files.values())):
        weights = {name: _stored(weight, shortened) for name, weight in merged_weights(source.base / file, lora)}
        save_file(weights, folder / file, metadata={"format": "pt"})
        size += sum(weight.nbytes for weight in weights.values())
    if len(set(files.values())) > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": files})
    write_small_files(source, folder)
    write_json(folder / "config.json", {"dtype": "bfloat16"} | _in_bf16(config))
    write_json(folder / "generation_config.json", decoding(source))


def lora_to_merge(source: Source) -> Lora:
    """The adapter, to be merged with the weights that ``source`` names.

    Raises ``SettingsError`` as ``read_lora`` does, and for four bits where the training had none.
    """
    lora = read_lora(source.adapter, source.base)
    if source.weights == "released":
        return lora
    if source.trained_over != "nf4":
        raise SettingsError(["--weights: nf4 is for adapters trained over four bits, this one was not; leave it out"])
    return replace(lora, in_four_bits=linear_layers_as_released(source.base))


def merged_weights(file: Path, lora: Lora) -> Iterator[tuple[str, Tensor]]:
    """The weights in a file of the base by name, one in memory at a time; those of adapted layers merged, in fp32."""
    with safe_open(file, framework="pt") as weights:
        for name in sorted(weights.keys()):
            yield name, lora.merge(name, weights.get_tensor(name))


def _stored(weight: Tensor, shortened: bool) -> Tensor:
    """In bf16, but what a 16-bit base was released with in fp32, such as decays, stays fp32 unless it was merged."""
    keep = not weight.is_floating_point() or (weight.dtype == torch.float32 and weight.ndim < 2 and not shortened)
    return weight if keep else weight.to(torch.bfloat16)


def _released_format(config: Mapping[str, object]) -> object:
    text = config.get("text_config")
    own = config.get("dtype") or config.get("torch_dtype")
    return own or (_released_format(text) if isinstance(text, dict) else None) or "float32"


def _in_bf16(config: Mapping[str, object]) -> dict[str, object]:
    """The released configuration, with its number format changed wherever it is named."""
    changed = {name: _in_bf16(value) if isinstance(value, dict) else value for name, value in config.items()}
    named = [name for name in ("dtype", "torch_dtype") if changed.get(name)]
    return changed | dict.fromkeys(named, "bfloat16")


def merged_usage(source: Source, _: Path) -> str:
    """How to use a merged model, in Markdown."""
    return f"""## Use it

In this folder, with nothing but transformers:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained("."), AutoModelForCausalLM.from_pretrained(".")
asked = [{{"role": "system", "content": system}}, {{"role": "user", "content": case}}]
inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = tokenizer.decode(model.generate(**inputs)[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
```

Or with vLLM: `vllm serve . --served-model-name {source.served_name}`. Both read `generation_config.json`: greedy, no
penalties, at most {source.max_new_tokens} tokens. The template asks without thinking.
{form_usage(source)}"""
