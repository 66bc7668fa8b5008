"""Builds Qwen's own tokenizer from an installed package: ``python -m samples.qwen_vocabulary FOLDER``.

The package ``dashscope`` (Apache-2.0) holds Qwen's vocabulary as a tiktoken file; transformers converts it.
"""

import argparse
import sys
from pathlib import Path

from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from samples.packaged_file import packaged_file
from samples.tiny_base import CHAT_TEMPLATE, CONTROL_TOKENS
from training_core.prompts.byte_pairs import WORDS


def build() -> PreTrainedTokenizerFast:
    """The tokenizer of Qwen2 and Qwen2.5: 151,643 tokens of text and three control tokens.

    Raises ``ModuleNotFoundError`` when the package is not installed.
    """
    file = packaged_file("dashscope", ".tiktoken")
    tokenizer = TikTokenConverter(str(file), pattern=WORDS, extra_special_tokens=CONTROL_TOKENS).converted()
    tokenizer.normalizer = normalizers.NFC()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=32_768,
    )


def main() -> None:
    """Write the tokenizer into the folder that is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    tokenizer = build()
    tokenizer.save_pretrained(folder)
    sys.stdout.write(f"Qwen's tokenizer, {len(tokenizer):,} tokens: {folder}\n")


if __name__ == "__main__":
    main()
