"""What was expected of a training, from `config.json` and from one batch, beside what it took.

`OMP_WAIT_POLICY=PASSIVE python -m benchmarks.forecast` (minutes). Each training has a process of its own.
"""

import json
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import date
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.compare import ENVIRONMENT, QUIET
from benchmarks.report import RUNS
from benchmarks.rows import ANSWER_TOKENS, SMALL_QWEN3, RowSet, write_base
from training_core.config import read_settings
from training_core.model_setup import load_model_and_tokenizer
from training_core.packing.batches import BatchSize, make_batches
from training_core.trainer import create_trainer
from training_core.training.memory import estimate_memory, measure_heaviest_batch, peak_memory_gib
from training_core.utils import set_seed

STEPS = 2


@dataclass(frozen=True)
class Case:
    """The shape of a training."""

    tokens: int
    packing: bool
    gradient_checkpointing: bool


@dataclass(frozen=True)
class Comparison:
    """GiB that libraries held before, GiB and seconds expected and taken; `reckoned` is from `config.json` alone."""

    case: Case
    before: float
    reckoned: float
    expected: float
    taken: float
    expected_seconds: float
    seconds: float
    measured_in_seconds: float


def compare(base: str, case: Case) -> Comparison:
    """Train a few steps after having looked ahead."""
    before = psutil.Process().memory_info().rss / 2**30
    rows = RowSet(case.tokens, 2, 3)
    config = read_settings(
        {
            "model_name": base,
            "max_seq_length": rows.longest_row + 160,
            "max_steps": STEPS,
            "per_device_train_batch_size": 1,
            "per_device_eval_batch_size": 1,
            "gradient_accumulation_steps": 4,
            "packing": case.packing,
            "gradient_checkpointing": case.gradient_checkpointing,
        }
    )
    loaded = load_model_and_tokenizer(config)
    vocabulary = SMALL_QWEN3["vocab_size"]
    batches = make_batches(rows.make(vocabulary), RowSet(case.tokens, 1, 2).make(vocabulary, seed=1), config)
    heaviest = BatchSize(batches.train.tokens_at_most, 2 * ANSWER_TOKENS, rows.longest_row)
    reckoned = estimate_memory(Path(base), config, heaviest, 4)
    with tempfile.TemporaryDirectory() as folder:
        trainer = create_trainer(loaded, batches, config, Path(folder))
        expected = measure_heaviest_batch(trainer, batches, config)
        set_seed(config.seed)
        started = time.monotonic()
        trainer.train()
    seconds = time.monotonic() - started
    return Comparison(
        case,
        before,
        before + reckoned.total,
        expected.peak_gib,
        peak_memory_gib(),
        expected.seconds,
        seconds,
        expected.measured_in_seconds,
    )


def show(comparisons: list[Comparison]) -> Table:
    table = Table(
        "tokens", "packing", "checkpointing", "GiB taken", "reckoned", "expected", "s taken", "expected", "probe s"
    )
    for found in comparisons:
        table.add_row(
            f"{found.case.tokens:,}",
            str(found.case.packing),
            str(found.case.gradient_checkpointing),
            f"{found.taken:.2f}",
            f"{found.reckoned / found.taken - 1:+.0%}",
            f"{found.expected / found.taken - 1:+.0%}",
            f"{found.seconds:.0f}",
            f"{found.expected_seconds / found.seconds - 1:+.0%}",
            f"{found.measured_in_seconds:.1f}",
        )
    return table


def main() -> None:
    """Measure all shapes, one after the other."""
    os.environ |= ENVIRONMENT | QUIET
    comparisons = []
    with tempfile.TemporaryDirectory() as base:
        write_base(SMALL_QWEN3, Path(base))
        for case in (Case(*shape) for shape in product((512, 2048, 4096), (True, False), (True, False))):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                comparisons.append(process.submit(compare, base, case).result())
            Console(stderr=True).print(comparisons[-1])
    Console().print(show(comparisons), date.today().isoformat())
    RUNS.mkdir(parents=True, exist_ok=True)
    (RUNS / "forecast.json").write_text(json.dumps([asdict(found) for found in comparisons], indent=1) + "\n")


if __name__ == "__main__":
    main()
