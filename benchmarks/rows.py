"""The rows of random tokens and the base model of random weights that all layouts train."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

CASE_TOKENS, ANSWER_TOKENS = (40, 120), 40
IGNORED = -100

Architecture = dict[str, Any]

# A Qwen3 of 10.5 million parameters: large enough for its matrix products to be most of the work.
SMALL_QWEN3: Architecture = {
    "model_type": "qwen3",
    "vocab_size": 8_192,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 16_384,
}


@dataclass(frozen=True)
class RowSet:
    """The rows of one optimiser step: some policies, and for each as many rows (policy, case, answer)."""

    policy_tokens: int
    rows_per_policy: int
    policies: int

    @property
    def longest_row(self) -> int:
        return self.policy_tokens + CASE_TOKENS[1] + ANSWER_TOKENS

    @property
    def name(self) -> str:
        share = f"{self.rows_per_policy} rows" if self.rows_per_policy > 1 else "1 row"
        return f"{share} per {self.policy_tokens:,}-token policy"

    def make(self, vocabulary: int, seed: int = 0) -> Dataset:
        """Columns `input_ids` and `labels`. Answers are of few frequent tokens, so that the loss can fall."""
        random = np.random.default_rng([seed, *asdict(self).values()])
        made = []
        for _ in range(self.policies):
            policy = random.integers(2, vocabulary, self.policy_tokens).tolist()
            for _ in range(self.rows_per_policy):
                prompt = policy + random.integers(2, vocabulary, random.integers(*CASE_TOKENS)).tolist()
                answer = (2 + random.zipf(1.5, ANSWER_TOKENS) % (vocabulary - 2)).tolist()
                made.append({"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer})
        return Dataset.from_list(made)


def write_base(architecture: Architecture, folder: Path) -> None:
    """A base model with random bf16 weights, and a tokenizer of numbers, as `from_pretrained` reads them."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(**architecture)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    words = {str(token): token for token in range(architecture["vocab_size"])}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="0")), pad_token="0", eos_token="1"
    ).save_pretrained(folder)
