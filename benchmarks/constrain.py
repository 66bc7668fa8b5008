"""Answers held to a grammar: whether all are complete, and the cost: `python -m benchmarks.constrain` (`--quick`).

Complete: random models, which know no form at all, answer random prompts under several schemas and
limits. Cost: the tiny base answers sample rows free and held to their form, in turns, on one thread.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from statistics import median

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from transformers import Qwen2Config, Qwen2ForCausalLM

from flows.doc_sections import DOCS, ROOT, write_section
from samples.cases import generate_rows
from training_core.config import read_settings, read_settings_file
from training_core.dataset.answer_schema import Schema, any_object, schema_of_answers
from training_core.evaluation.generation import complete
from training_core.evaluation.grammar import AnswerGrammar
from training_core.evaluation.text_scores import is_usable, parse_answer
from training_core.model_setup import LoadedModel, load_model_and_tokenizer, load_tokenizer
from training_core.prompts.chat_encoding import ChatEncoder
from training_core.prompts.messages import format_as_chat
from training_core.rows.strict_json import Record
from training_core.utils import Precision, set_seed

RESULTS = ROOT / "benchmarks" / "results" / "constrain.json"
PAGE, SECTION = DOCS / "evaluation.md", "constrain"
CONFIG = read_settings(
    {**read_settings_file(ROOT / "configs" / "demo.yaml"), "model_name": str(ROOT / "samples" / "tiny_qwen")}
)
MOST_SLOWER = 0.1
ANSWERS_AT_ONCE = 500
ROWS, SEED = 128, 5
PADDED = 59  # rows of the embeddings that no token has, as in Qwen's
FP32 = Precision("fp32", "fp32")

NESTED: list[Record] = [
    {"decision": "Eligible", "reason": "r", "amount": 12.5, "steps": ["a", "b"], "parcel": {"id": 7, "lost": True}},
    {"decision": "Not Eligible", "reason": "r", "amount": 3, "steps": [], "parcel": None},
    {"decision": "Escalate", "steps": ["a"], "parcel": {"id": 1, "lost": False}, "refunds": [{"sum": 1, "to": "c"}]},
]


@dataclass(frozen=True)
class Complete:
    """Answers under one schema and limit: how many there are, and how many are complete (usable, for a schema)."""

    schema: str
    limit: int
    answers: int
    complete: int
    longest: int


@dataclass(frozen=True)
class Cost:
    """CPU seconds of the same rows answered free and held to their form: medians of turns; and equal answers."""

    rows: int
    turns: int
    free: float
    held: float
    equal: int

    @property
    def slower(self) -> float:
        return self.held / self.free - 1


def random_model(seed: int) -> LoadedModel:
    """A model of a few weights with the tokenizer of the tiny base: what it says has no form."""
    set_seed(seed)
    tokenizer = load_tokenizer(Path(CONFIG.model_name))
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1, "num_key_value_heads": 1}
    spread = {"num_hidden_layers": 1, "initializer_range": 1.0}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer) + PADDED, **sizes, **spread))
    return LoadedModel(get_peft_model(model, LoraConfig(r=1, target_modules="all-linear")), tokenizer, FP32)


def samples(rows: int) -> list[Record]:
    """Sample rows of all policies."""
    return list(generate_rows(rows, SEED))


def schemas() -> dict[str, tuple[Schema, list[Record]]]:
    """Each with the answers that it was made from; any object has none."""
    texts, nested = [row["output"] for row in samples(ROWS)], NESTED
    return {
        "texts": (schema_of_answers(texts), texts),
        "nested": (schema_of_answers(nested), nested),
        "json": (any_object(), []),
    }


def measure_complete(answers: int) -> Iterator[Complete]:
    """So many answers per schema and limit."""
    for name, limit in (("texts", 64), ("texts", 128), ("nested", 128), ("json", 128)):
        schema, examples = schemas()[name]
        found, longest = 0, 0
        for seed in range(0, answers, ANSWERS_AT_ONCE):
            loaded = random_model(seed)
            grammar, rng = AnswerGrammar.of(schema, loaded.tokenizer), np.random.default_rng([seed, limit])
            lengths = rng.integers(1, 9, ANSWERS_AT_ONCE)
            prompts = [rng.integers(3, len(loaded.tokenizer), length).tolist() for length in lengths]
            config = replace(CONFIG, eval_max_new_tokens=limit, eval_batch_size=ANSWERS_AT_ONCE)
            tokens = [completion.tokens for completion in complete(loaded, prompts, config, grammar)]
            texts = ChatEncoder.of(loaded.tokenizer).decode_answers(tokens)
            ends = [one[-1] == grammar.end_of_turn for one in tokens]
            found += sum(end and _is_complete(text, examples) for end, text in zip(ends, texts, strict=True))
            longest = max(longest, *map(len, tokens))
        yield Complete(name, limit, answers, found, longest)


def _is_complete(text: str, examples: list[Record]) -> bool:
    if not examples:
        return isinstance(json.loads(text), dict)
    answer = parse_answer(text)
    return any(is_usable(answer, example) for example in examples)


def measure_cost(rows: int, turns: int) -> Cost:
    """The base's own answers: it knows the form, so free and held answers are about equally long."""
    torch.set_num_threads(1)
    loaded, records = load_model_and_tokenizer(CONFIG), samples(rows)
    grammar = AnswerGrammar.of(schema_of_answers([row["output"] for row in records]), loaded.tokenizer)
    encoder = ChatEncoder.of(loaded.tokenizer)
    prompts = [ids.tolist() for ids in encoder.encode_prompts([format_as_chat(row)[:-1] for row in records])]
    seconds: dict[bool, list[float]] = {False: [], True: []}
    answers = {}
    for turn in range(2 * turns + 2):
        held = bool(turn % 2)
        start = time.process_time()
        answers[held] = [one.tokens for one in complete(loaded, prompts, CONFIG, grammar if held else None)]
        seconds[held].append(time.process_time() - start)
    free, held_seconds = (median(found[1:]) for found in seconds.values())  # the first turn warms up
    equal = sum(one == other for one, other in zip(answers[False], answers[True], strict=True))
    return Cost(rows, turns, free, held_seconds, equal)


def table(found: list[Complete], cost: Cost) -> str:
    """The results as Markdown."""
    lines = [
        "| answers are held to | limit | answers | complete | longest |",
        "| --- | --: | --: | --: | --: |",
        *(f"| {one.schema} | {one.limit} | {one.answers:,} | {one.complete:,} | {one.longest} |" for one in found),
    ]
    return "\n".join(
        [
            "Random models, which know no form, answer random prompts. *Complete*: the answer ends "
            "within the limit of tokens and is one JSON object, and under a schema also usable.",
            "",
            *lines,
            "",
            f"The tiny base on {cost.rows} sample rows, medians of {cost.turns} turns: {cost.free:.1f} CPU seconds "
            f"free, {cost.held:.1f} held to the form of the rows ({cost.slower:+.1%}; at most {MOST_SLOWER:+.0%} is "
            f"wanted{', which is missed' if cost.slower > MOST_SLOWER else ''}); {cost.equal} answers are equal. "
            f"{date.today()}.",
            "",
        ]
    )


def main() -> None:
    """Measure; a full run also writes results and table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.constrain", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="500 answers a schema; changes no page")
    arguments = parser.parse_args()
    cost = measure_cost(32, 1 if arguments.quick else 5)
    found = list(measure_complete(ANSWERS_AT_ONCE if arguments.quick else 2_500))
    Console().print(table(found, cost), markup=False)
    if not arguments.quick:
        results = {"date": str(date.today()), "cost": asdict(cost), "complete": [asdict(one) for one in found]}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        write_section(PAGE, SECTION, table(found, cost))


if __name__ == "__main__":
    main()
