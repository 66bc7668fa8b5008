"""Builds the tiny Qwen2 base model in ``samples/tiny_qwen``: large enough to learn, small enough for git.

The base can read cases and answer in the right format, but it does not know the sample policies: it is trained on rows
whose limits are scaled at random, and in half of the policies the names of the decisions are permuted. Fine-tuning has
to teach it the rest.
"""

import argparse
import json
import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Trainer,
    TrainingArguments,
    get_cosine_schedule_with_warmup,
)

from samples.cases import generate_rows, policy_names, policy_text
from samples.rulebook import DECISIONS
from training_core.dataset.encoding import IGNORED_LABEL
from training_core.packing.attention import use_shared_prefix_attention
from training_core.packing.plan import collate_pack, packed_dataset, plan_packing
from training_core.prompts.byte_pairs import WORDS
from training_core.prompts.chat_encoding import ChatEncoder
from training_core.prompts.messages import build_assistant_message, format_as_chat
from training_core.utils import set_seed

logger = logging.getLogger(__name__)

TINY_QWEN = Path(__file__).parent / "tiny_qwen"
READING_BATCH = 32
RESTATED_SHARE = 0.4

_NOT_FACTS = ("policy_document", "case_id", "customer_message")

CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(texts: Iterator[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer like Qwen's, with its control tokens and a chat template."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=CONTROL_TOKENS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
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


def altered_rows(count: int, seed: int, jitter: float) -> Iterator[dict[str, Any]]:
    """Rows whose limits differ by up to the share ``jitter``; every second policy permutes its decisions."""
    renamed = dict(zip(DECISIONS, (*DECISIONS[1:], DECISIONS[0]), strict=True))
    renaming_policies = {policy_text(policy) for policy in policy_names()[::2]}
    for record in generate_rows(count, seed, jitter):
        if record["input"]["policy_document"] in renaming_policies:
            record["output"]["decision"] = renamed[record["output"]["decision"]]
        yield record


def teach_reading(model: Qwen2ForCausalLM, encoder: ChatEncoder, rows: Iterator[dict[str, Any]], steps: int) -> None:
    """Train on short exercises without a policy: restate the facts of a case in another order, or answer it.

    The decision is one token in seventy of an answer, too weak a signal for learning to read, so it has more weight
    here. Restating facts teaches to attend to them.
    """
    exercises = (_exercise(encoder, record, Random(index)) for index, record in enumerate(rows))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = get_cosine_schedule_with_warmup(optimizer, 100, steps)
    for step in range(1, steps + 1):
        loss = _weighted_loss(model, list(islice(exercises, READING_BATCH)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            logger.info("Reading: step %d of %d, loss %.3f", step, steps, loss.item())


def _exercise(encoder: ChatEncoder, record: dict[str, Any], rng: Random) -> tuple[list[int], list[float]]:
    """Token ids and the weight of each token in the loss."""
    facts = {name: value for name, value in record["input"].items() if name not in _NOT_FACTS}
    prompt = encoder.encode_prompt([{"role": "user", "content": f"## Case\n\n{json.dumps(facts)}"}])
    if rng.random() < RESTATED_SHARE:
        restated = dict(rng.sample(list(facts.items()), len(facts)))
        answer = encoder.encode_answer(json.dumps(restated))
        return prompt + answer, [0.0] * len(prompt) + [0.1] * len(answer)
    answer = encoder.encode_answer(build_assistant_message(record))
    weights = [0.2] * len(answer)
    weights[len(encoder.encode_answer('{"decision": "')) - 1] = 2.0  # the first token of the decision
    return prompt + answer, [0.0] * len(prompt) + weights


def _weighted_loss(model: Qwen2ForCausalLM, batch: list[tuple[list[int], list[float]]]) -> torch.Tensor:
    longest = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in batch])
    weights = torch.tensor([weights + [0.0] * (longest - len(weights)) for _, weights in batch])[:, 1:]
    hidden = model.model(ids).last_hidden_state[:, :-1][weights > 0]
    losses = cross_entropy(model.lm_head(hidden), ids[:, 1:][weights > 0], reduction="none")
    return (losses * weights[weights > 0]).sum() / len(batch)


def teach_format(model: Qwen2ForCausalLM, rows: Dataset, seed: int, folder: Path) -> None:
    """Train one epoch on whole rows, policy and answer included, packed so that rows of one policy share it."""
    use_shared_prefix_attention(model)
    plan = plan_packing(rows, token_budget=8192, rows_per_step=32, seed=seed)
    arguments = TrainingArguments(
        output_dir=str(folder),
        seed=seed,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=plan.packs_per_step,
        num_train_epochs=1,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        weight_decay=0.01,
        bf16=False,
        logging_steps=20,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    Trainer(model, arguments, train_dataset=packed_dataset(rows, plan.packs), data_collator=collate_pack).train()
    model.set_attn_implementation("sdpa")


def encode_rows(encoder: ChatEncoder, records: Iterator[dict[str, Any]]) -> Dataset:
    """Whole rows as token ids, with labels on the answers."""
    rows = []
    for record in records:
        messages = format_as_chat(record)
        prompt, answer = encoder.encode_prompt(messages[:-1]), encoder.encode_answer(messages[-1]["content"])
        rows.append({"input_ids": prompt + answer, "labels": [IGNORED_LABEL] * len(prompt) + answer})
    return Dataset.from_list(rows)


def main() -> None:
    """Build the base model and write it to a folder, in bf16."""
    parser = argparse.ArgumentParser(prog="python -m samples.tiny_base", description=main.__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=TINY_QWEN, help="the folder to write")
    parser.add_argument("--reading_steps", type=int, default=1500, help="steps of short exercises")
    parser.add_argument("--rows", type=int, default=6_400, help="whole rows afterwards")
    parser.add_argument("--jitter", type=float, default=0.6, help="maximum change of the limits, as a share")
    parser.add_argument("--vocabulary", type=int, default=3072, help="size of the tokenizer's vocabulary")
    parser.add_argument("--seed", type=int, default=20_000, help="equal seeds give equal models on the same machine")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    set_seed(arguments.seed)
    texts = (json.dumps(row).replace("\\n", "\n") for row in altered_rows(2_000, arguments.seed, arguments.jitter))
    tokenizer = train_tokenizer(texts, arguments.vocabulary)
    model, encoder = build_model(len(tokenizer)), ChatEncoder.of(tokenizer)
    exercises = altered_rows(arguments.reading_steps * READING_BATCH, arguments.seed + 1, arguments.jitter)
    teach_reading(model, encoder, exercises, arguments.reading_steps)
    whole = encode_rows(encoder, altered_rows(arguments.rows, arguments.seed + 2, arguments.jitter))
    teach_format(model, whole, arguments.seed, arguments.folder)
    model.to(torch.bfloat16).save_pretrained(arguments.folder)
    tokenizer.save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
