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
    """A training that does not fit ends in a message with the fix; then the model is loaded again, and that fits."""
    if bench.device == "cpu":
        yield figure("memory", "not measured: needs a GPU")
        return
    _train(bench, gradient_checkpointing=True)
    enough = 1.1 * reserved_gib()
    yield figure("GiB to have, 1.1 of what recomputed activations need", enough)
    release()
    with memory_of(enough):
        yield Check("activations kept", *_refusal(bench))
        release()
        losses = _train(bench, gradient_checkpointing=True)
        yield holds("loaded again, activations recomputed: losses finite", all(map(math.isfinite, losses)), True)


def _refusal(bench: Bench) -> tuple[str, str, bool]:
    """What a training that does not fit says, the fix that it has to name, and whether it does."""
    fix = "set gradient_checkpointing true"
    try:
        _train(bench, gradient_checkpointing=False)
    except SettingsError as error:
        return str(error), fix, fix in str(error)
    return "it fitted", fix, False


def _train(bench: Bench, *, gradient_checkpointing: bool) -> list[float]:
    """The losses of two steps of 32 rows of about 2,000 tokens."""
    config = settings(bench.base(FEW_LAYERS), max_steps=2, gradient_checkpointing=gradient_checkpointing)
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
