"""Seven billion weights in the memory of an A10, a training that does not fit, and one in fp16."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from benchmarks.gpu_steps.bench import Bench, release, settings
from benchmarks.gpu_steps.checks import Check, below, figure, holds
from benchmarks.gpu_steps.measured import train_measured
from training_core.config import SettingsError
from training_core.evaluation.generation import generate
from training_core.model_setup import load_model_and_tokenizer

A10_GIB = 22.5
FEW_LAYERS = "1.5B, 4 layers"


@contextmanager
def memory_of(gib: float) -> Iterator[None]:
    """Let this process have only so much of the GPU's memory."""
    if not torch.cuda.is_available():
        yield
        return
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / torch.cuda.get_device_properties(0).total_memory))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def reserved_gib() -> float:
    """The most memory that the allocator has held; 0 without a GPU."""
    return torch.cuda.max_memory_reserved() / 2**30 if torch.cuda.is_available() else 0.0


def seven_billion(bench: Bench) -> Iterator[Check]:
    """Three steps of one pack of about 8,192 tokens, and 16 answers, in 22.5 GiB."""
    started = time.monotonic()
    base = bench.base("7B")
    yield figure("base written, s", time.monotonic() - started)
    config = settings(base, max_steps=3, gradient_accumulation_steps=2, eval_max_new_tokens=32)
    rows = bench.rows(860, 1, 8).make(bench.architecture("7B")["vocab_size"])
    with memory_of(A10_GIB):
        started = time.monotonic()
        loaded = load_model_and_tokenizer(config)
        yield figure("loaded, s", time.monotonic() - started)
        yield below("loaded, peak GiB reserved", reserved_gib(), A10_GIB)
        measured = train_measured(loaded, rows, config, bench.run_dir("7B"))
        yield figure("tokens of a step", measured.computed_tokens)
        yield holds("all losses finite", all(map(math.isfinite, measured.losses)), True)
        yield figure("seconds per step", measured.step_seconds)
        yield figure("tokens/s", measured.tokens / measured.step_seconds)
        yield figure("trained, peak GiB", measured.peak_gib)
        yield below("trained, peak GiB reserved", reserved_gib(), A10_GIB)
        started = time.monotonic()
        prompts = [row[:-40] for row in bench.rows(800, 8, 2).make(bench.architecture("7B")["vocab_size"])["input_ids"]]
        answers = generate(loaded, prompts, config)
        yield figure("tokens answered/s", sum(map(len, answers)) / (time.monotonic() - started))
        yield holds("answers", len(answers), 16)
        yield below("answered, peak GiB reserved", reserved_gib(), A10_GIB)


def out_of_memory(bench: Bench) -> Iterator[Check]:
    """A batch that does not fit ends in a message with the remedy; after that the remedy's model fits beside it."""
    if bench.device == "cpu":
        yield figure("memory", "not measured: needs a GPU")
        return
    small = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 16, "gradient_checkpointing": True}
    large = {"per_device_train_batch_size": 32, "gradient_accumulation_steps": 1, "gradient_checkpointing": True}
    _train(bench, **small)
    enough = 1.2 * reserved_gib()
    yield figure("GiB for 2 rows of 2,048 tokens a batch", enough)
    with memory_of(enough):
        yield Check("32 rows a batch", *_refusal(bench, **large))
        release()
        yield holds(
            "2 rows a batch, loaded again: losses finite", all(map(math.isfinite, _train(bench, **small))), True
        )


def _refusal(bench: Bench, **values: int) -> tuple[str, str, bool]:
    """What a training that does not fit says, what it has to say, and whether it does."""
    wanted = "memory: …: set per_device_train_batch_size 16"
    try:
        _train(bench, **values)
    except SettingsError as error:
        return str(error), wanted, "set per_device_train_batch_size 16" in str(error)
    return "it fitted", wanted, False


def _train(bench: Bench, **values: int) -> list[float]:
    """The losses of two steps of 32 rows of about 2,000 tokens."""
    config = settings(bench.base(FEW_LAYERS), max_steps=2, **values)
    rows = bench.rows(1_850, 1, 32).make(bench.architecture(FEW_LAYERS)["vocab_size"])
    return train_measured(load_model_and_tokenizer(config), rows, config, bench.run_dir("memory")).losses


def half_precision(bench: Bench) -> Iterator[Check]:
    """A training in fp16, as on cards without bf16."""
    if bench.device == "cpu":
        yield figure("fp16", "not measured: needs a GPU")
        return
    config = settings(bench.base(FEW_LAYERS), max_steps=6, precision="fp16", learning_rate=1e-3)
    rows = bench.rows(200, 4, 8).make(bench.architecture(FEW_LAYERS)["vocab_size"])
    loaded = load_model_and_tokenizer(config)
    before = {name: weight.detach().clone() for name, weight in loaded.model.named_parameters() if weight.requires_grad}
    measured = train_measured(loaded, rows, config, bench.run_dir("fp16"))
    yield figure("losses", ", ".join(f"{loss:.3f}" for loss in measured.losses))
    yield holds("all losses finite", all(map(math.isfinite, measured.losses)), True)
    after = dict(loaded.model.named_parameters())
    moved = sum(not torch.equal(weight, after[name]) for name, weight in before.items())
    yield holds("weights that moved", moved, len(before))
    yield holds("weights finite", all(bool(after[name].isfinite().all()) for name in before), True)
