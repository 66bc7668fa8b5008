"""Builds the tiny Qwen2 base model that ships in ``samples/tiny_qwen``: big enough to learn, small enough for git.

It is trained on other editions of the sample policies: the same words and facts, but limits scaled at random from row
to row. So it writes the format and knows that numbers matter; which numbers, fine-tuning has to teach it.
"""

import argparse
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Trainer, TrainingArguments

from samples.cases import generate_rows
from training_core.chat_encoding import ChatEncoder
from training_core.data_loader import IGNORED_LABEL, format_as_chat
from training_core.packing import collate_pack, packed_dataset, plan_packing, use_shared_prefix_attention
from training_core.utils import set_seed, setup_logging

logger = logging.getLogger(__name__)

TINY_QWEN = Path(__file__).parent / "tiny_qwen"

_CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Words, single digits, punctuation and white space apart, as Qwen's own tokenizers have it.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterator[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in Qwen's manner, with its control tokens and a chat template."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=_CONTROL_TOKENS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=_CHAT_TEMPLATE,
        model_max_length=8192,
    )


def build_model(vocabulary: int) -> Qwen2ForCausalLM:
    """An untrained Qwen2 of about 1.2 million parameters."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=2,
            pad_token_id=0,
        )
    )


def encode_rows(tokenizer: PreTrainedTokenizerFast, count: int, seed: int, jitter: float) -> Dataset:
    """Rows of other policy editions as token ids, with labels on the answers."""
    encoder = ChatEncoder.of(tokenizer)

    def rows() -> Iterator[dict[str, list[int]]]:
        for record in generate_rows(count, seed, jitter):
            messages = format_as_chat(record)
            prompt, answer = (
                encoder.encode_prompt(messages[:-1]),
                encoder.encode_answer(messages[-1]["content"]),
            )
            yield {"input_ids": prompt + answer, "labels": [IGNORED_LABEL] * len(prompt) + answer}

    return Dataset.from_list(list(rows()))


def pretrain(model: Qwen2ForCausalLM, rows: Dataset, seed: int, output_dir: Path) -> None:
    """One pass over the rows, those of one policy under one copy of it."""
    use_shared_prefix_attention(model)
    plan = plan_packing(rows, token_budget=4096, rows_per_step=64, seed=seed)
    logger.info("%s", plan.reason)
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        seed=seed,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=plan.packs_per_step,
        num_train_epochs=1,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        weight_decay=0.01,
        bf16=False,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    Trainer(model, arguments, train_dataset=packed_dataset(rows, plan), data_collator=collate_pack).train()
    model.set_attn_implementation("sdpa")


def main() -> None:
    """Build the base model and write it to a folder, in bf16."""
    parser = argparse.ArgumentParser(prog="python -m samples.tiny_base", description=main.__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=TINY_QWEN, help="the folder to write")
    parser.add_argument("--rows", type=int, default=48_000, help="rows to train on")
    parser.add_argument("--jitter", type=float, default=0.6, help="how far limits stray from ours, as a share")
    parser.add_argument("--vocabulary", type=int, default=3072, help="size of the tokenizer's vocabulary")
    parser.add_argument("--seed", type=int, default=20_000, help="equal seeds give equal models on equal machines")
    arguments = parser.parse_args()
    setup_logging()
    set_seed(arguments.seed)
    texts = (
        json.dumps(row, ensure_ascii=False).replace("\\n", "\n") for row in generate_rows(2_000, arguments.seed, 0.6)
    )
    tokenizer = train_tokenizer(texts, arguments.vocabulary)
    model = build_model(len(tokenizer))
    rows = encode_rows(tokenizer, arguments.rows, arguments.seed, arguments.jitter)
    pretrain(model, rows, arguments.seed, arguments.folder)
    model.to(torch.bfloat16).save_pretrained(arguments.folder)
    tokenizer.save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
