"""One file of base and adapter for llama.cpp: GGUF, written with the package ``gguf`` of the llama.cpp project.

Names and values are those that llama.cpp's ``convert_hf_to_gguf.py`` writes for the same model. That script is in no
package of its project; this needs none of its other architectures, and merges the adapter on the way.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import quant_shape_to_byte_shape, quantize
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerFast

from training_core.base_weights import weight_files, weight_shapes
from training_core.config import SettingsError
from training_core.export.choices import GgufType
from training_core.export.lora import Lora
from training_core.export.merged import lora_to_merge, merged_weights
from training_core.export.source import GGUF_FILE, Source
from training_core.prompts import byte_pairs
from training_core.prompts.chat_templates import end_of_turn

_KINDS = {"bf16": (Kind.BF16, "MOSTLY_BF16"), "f16": (Kind.F16, "MOSTLY_F16"), "q8_0": (Kind.Q8_0, "MOSTLY_Q8_0")}
_ARCHITECTURES = {"Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2, "Qwen3ForCausalLM": gguf.MODEL_ARCH.QWEN3}


def write_gguf(source: Source, folder: Path, kind: GgufType = "bf16") -> None:
    """Write the merged model, its tokenizer and its template as one file; vectors stay fp32, as llama.cpp wants them.

    In memory is one weight at a time. Raises ``SettingsError`` as ``read_lora`` does, and where llama.cpp would compute
    otherwise: other architectures, windows, scaled rotations, tokenizers that split texts in another way.
    """
    config = AutoConfig.from_pretrained(source.base)
    _require_known(config)
    lora = lora_to_merge(source)
    writer = gguf.GGUFWriter(folder / GGUF_FILE, gguf.MODEL_ARCH_NAMES[_architecture(config)])
    _add_facts(writer, config, source, kind)
    _add_tokenizer(writer, source.tokenizer, config.vocab_size)
    _write_weights(writer, source.base, lora, config, _KINDS[kind][0])


def _architecture(config: PretrainedConfig) -> gguf.MODEL_ARCH:
    return _ARCHITECTURES[config.architectures[0]]


def _require_known(config: PretrainedConfig) -> None:
    (architecture,) = config.architectures
    if architecture not in _ARCHITECTURES:
        what = f"gguf is for dense Qwen2 and Qwen3, the base is {architecture}"
    elif set(config.layer_types) != {"full_attention"}:
        what = f"gguf is for full attention, the base has {', '.join(sorted(set(config.layer_types)))}"
    elif config.rope_parameters["rope_type"] != "default":
        what = f"gguf is for plain rotations, the base has {config.rope_parameters['rope_type']}"
    else:
        return
    raise SettingsError([f"format: {what}; export --format merged"])


def _add_facts(writer: gguf.GGUFWriter, config: PretrainedConfig, source: Source, kind: GgufType) -> None:
    values = config.to_dict()
    writer.add_name(source.name)
    writer.add_file_type(gguf.LlamaFileType[_KINDS[kind][1]])
    writer.add_block_count(values["num_hidden_layers"])
    writer.add_context_length(values["max_position_embeddings"])
    writer.add_embedding_length(values["hidden_size"])
    writer.add_feed_forward_length(values["intermediate_size"])
    writer.add_head_count(values["num_attention_heads"])
    writer.add_head_count_kv(values["num_key_value_heads"])
    writer.add_rope_freq_base(values["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(values["rms_norm_eps"])
    if head := values.get("head_dim"):
        writer.add_key_length(head)
        writer.add_value_length(head)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast, vocabulary: int) -> None:
    """The byte-level BPE: tokens up to the size of the embeddings, their kinds, merges, template and end of turn."""
    values = json.loads(tokenizer.backend_tokenizer.to_str())
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    added = {token["id"]: token for token in values["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_splitting(values))
    writer.add_token_list([names.get(number, f"[PAD{number}]") for number in range(vocabulary)])
    writer.add_token_types([_token_type(number, names, added) for number in range(vocabulary)])
    writer.add_token_merges([" ".join(pair) for pair in values["model"]["merges"]])
    end = end_of_turn(tokenizer)
    assert end is not None, "its template was checked before the training"
    writer.add_eos_token_id(end)
    writer.add_bos_token_id(end if tokenizer.bos_token_id is None else tokenizer.bos_token_id)
    writer.add_pad_token_id(end if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(str(tokenizer.chat_template))


def _splitting(values: Mapping[str, Any]) -> str:
    """llama.cpp's name of how texts are split: Qwen's tokenizers begin with a pattern, SmolLM's split digits first."""
    steps = values["pre_tokenizer"].get("pretokenizers", [values["pre_tokenizer"]])
    first = steps[0]
    if first.get("pattern", {}).get("Regex") == byte_pairs.WORDS:
        return "qwen2"
    if first["type"] == "Digits" and first["individual_digits"]:
        return "smollm"
    raise SettingsError(["format: gguf is for tokenizers that split texts as Qwen2's does; export --format merged"])


def _token_type(number: int, names: Mapping[int, str], added: Mapping[int, Mapping[str, Any]]) -> gguf.TokenType:
    if number not in names:
        return gguf.TokenType.UNUSED
    if number not in added:
        return gguf.TokenType.NORMAL
    return gguf.TokenType.CONTROL if added[number]["special"] else gguf.TokenType.USER_DEFINED


def _write_weights(writer: gguf.GGUFWriter, base: Path, lora: Lora, config: PretrainedConfig, kind: Kind) -> None:
    names = gguf.get_tensor_name_map(_architecture(config), config.num_hidden_layers)
    shapes = weight_shapes(base)
    for name in _in_order(base):
        shape = shapes[name]
        stored = _kind_of(shape, kind)
        size = int(np.prod(quant_shape_to_byte_shape(shape, stored)))
        writer.add_tensor_info(_translated(name, names), shape, np.dtype(np.float32), size, stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for file in sorted(set(weight_files(base).values())):
        for _, weight in merged_weights(base / file, lora):
            writer.write_tensor_data(_encoded(weight, _kind_of(tuple(weight.shape), kind)))
    writer.close()


def _in_order(base: Path) -> list[str]:
    """The names of the base's weights as ``merged_weights`` gives them, file after file."""
    files = weight_files(base)
    return sorted(files, key=lambda name: (files[name], name))


def _translated(name: str, names: gguf.TensorNameMap) -> str:
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise SettingsError([f"format: gguf has no name for the base's weight {name}; export --format merged"])
    return found


def _kind_of(shape: tuple[int, ...], kind: Kind) -> Kind:
    """Vectors are fp32; a matrix whose rows do not divide into blocks of a quantised kind stays in 16 bits."""
    if len(shape) < 2:
        return Kind.F32
    return kind if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 else Kind.F16


def _encoded(weight: Tensor, kind: Kind) -> np.ndarray:
    values = weight.to(torch.float32).numpy()
    return values if kind is Kind.F32 else quantize(values, kind)
