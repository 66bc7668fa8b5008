"""Speed and memory of trainings of 1.5 billion weights, next to TRL, and the gradient of rows that share a policy."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cosine_similarity

from benchmarks import with_trl
from benchmarks.gpu_steps.bench import Bench, release, settings
from benchmarks.gpu_steps.checks import Check, above, below, figure, holds, near
from benchmarks.gpu_steps.measured import Measured, train_measured
from benchmarks.rows import Architecture
from benchmarks.training import Job, row_loss, run_here
from training_core.config import RunConfig
from training_core.model_setup import LoadedModel, load_model_and_tokenizer
from training_core.packing.attention import attend_in_segments
from training_core.packing.batches import make_batches
from training_core.packing.blocks import runs_in_blocks
from training_core.packing.plan import collate_pack
from training_core.trainer import create_trainer

# Dense bf16, by their data sheets; a card with none of these names gets no MFU.
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "A10": 125.0}
STEPS = 6


def speed(bench: Bench) -> Iterator[Check]:
    """Rows of 800-token policies by the product's path, sharing and not, and by TRL with the same rows a step."""
    speeds: dict[str, float] = {}
    for layout, per_policy in (("8 rows share", 8), ("unshared", 1)):
        release()
        measured = _product(bench, per_policy)
        speeds[layout] = measured.tokens / measured.step_seconds
        yield from _checks(bench, layout, measured)
    for layout, trainer in (("TRL, batches of 8", with_trl.as_documented), ("TRL, row by row", with_trl.at_its_best)):
        job = Job(bench.base("1.5B"), bench.rows(800, 8, 4), _vocabulary(bench), 3, bench.run_dir("trl"), True)
        release()
        outcome = run_here(trainer, job)
        speeds[layout] = outcome.row_tokens / outcome.wall_seconds
        yield figure(f"{layout}: tokens/s", speeds[layout])
        yield figure(f"{layout}: peak GiB", outcome.peak_memory_mb / 1024)
    if bench.tiny:
        return
    peer = max(speed for layout, speed in speeds.items() if layout.startswith("TRL"))
    yield above("unshared / TRL's best", speeds["unshared"] / peer, 0.9)
    yield above("8 rows share / TRL's best", speeds["8 rows share"] / peer, 3.0)


def _vocabulary(bench: Bench) -> int:
    return bench.architecture("1.5B")["vocab_size"]


def _product(bench: Bench, per_policy: int) -> Measured:
    config = settings(bench.base("1.5B"), max_steps=STEPS)
    rows = bench.rows(800, per_policy, 32 // per_policy).make(_vocabulary(bench))
    return train_measured(load_model_and_tokenizer(config), rows, config, bench.run_dir("speed"))


def _checks(bench: Bench, layout: str, measured: Measured) -> Iterator[Check]:
    yield holds(f"{layout}: all losses finite", all(map(math.isfinite, measured.losses)), True)
    yield figure(f"{layout}: losses", ", ".join(f"{loss:.3f}" for loss in measured.losses))
    yield figure(f"{layout}: tokens before sharing/s", measured.tokens / measured.step_seconds)
    yield figure(f"{layout}: tokens computed/s", measured.computed_tokens / measured.step_seconds)
    if bench.device == "cpu":
        return
    yield near(f"{layout}: peak GiB", measured.peak_gib, measured.forecast.peak_gib, 0.1)
    yield near(f"{layout}: seconds per step", measured.step_seconds, measured.forecast_seconds, 0.3)
    if peak := next((tflops for card, tflops in PEAK_TFLOPS.items() if card in torch.cuda.get_device_name()), None):
        share = utilisation(measured.computed_tokens, measured.step_seconds, bench.architecture("1.5B"), peak)
        check = above if layout == "unshared" else lambda what, found, _: figure(what, found)
        yield check(f"{layout}: MFU", share, 0.35)


def block_weights(architecture: Architecture) -> int:
    """Weights of all linear layers but the head."""
    hidden = architecture["hidden_size"]
    share = architecture["num_key_value_heads"] / architecture["num_attention_heads"]
    layer = 2 * hidden**2 * (1 + share) + 3 * hidden * architecture["intermediate_size"]
    return round(architecture["num_hidden_layers"] * layer)


def utilisation(tokens: float, seconds: float, architecture: Architecture, peak_tflops: float) -> float:
    """Model FLOPs utilisation (MFU): the arithmetic of the computed tokens over what the GPU can do in that time.

    Two operations a weight forward, two backward (frozen weights need no gradient); attention, adapter, head and
    recomputed activations are not counted.
    """
    return 4 * block_weights(architecture) * tokens / seconds / (peak_tflops * 1e12)


def gradient(bench: Bench) -> Iterator[Check]:
    """Loss and gradient of 8 rows that share a policy in one pack, and of the same rows one by one."""
    for base in ("1.5B", "hybrid, 4 layers"):
        release()
        yield from _compare_gradients(bench, base)


def _compare_gradients(bench: Bench, base: str) -> Iterator[Check]:
    rows = bench.rows(800, 8, 1).make(_vocabulary(bench))
    config = settings(bench.base(base), max_steps=1, gradient_accumulation_steps=4)
    loaded = load_model_and_tokenizer(config)
    _move_adapter(loaded)
    apart = _gradient_apart(loaded, rows)
    together = _gradient_packed(loaded, rows, config, bench)
    if bench.device == "cuda":
        backbone = loaded.model.get_base_model().base_model
        segments = torch.tensor([[256, -1]], device=bench.device)
        yield holds(f"{base}: packs run in blocks", runs_in_blocks(backbone, segments, attend_in_segments), True)
    yield figure(f"{base}: loss, apart", apart[0])
    yield below(f"{base}: difference of the loss", abs(apart[0] - together[0]), 2e-3)
    cosine = float(cosine_similarity(apart[1], together[1], dim=0))
    yield above(f"{base}: cosine of the gradients", cosine, 0.999)


def _move_adapter(loaded: LoadedModel) -> None:
    """LoRA's second matrices begin as zero, and then the first ones have no gradient."""
    torch.manual_seed(0)
    for name, weight in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.01)


def _gradient_apart(loaded: LoadedModel, rows: Dataset) -> tuple[float, Tensor]:
    """Answers are equally long, so the mean over rows is the mean over labels."""
    model, total = loaded.model.train(), 0.0
    enabled = loaded.precision.name != "fp32"
    for row in rows.with_format("torch", device=model.device):
        with torch.autocast(model.device.type, loaded.precision.dtype, enabled=enabled):
            loss = row_loss(model, row["input_ids"], row["labels"]) / len(rows)
        loss.backward()
        total += loss.item()
    return total, _taken_gradient(loaded)


def _gradient_packed(loaded: LoadedModel, rows: Dataset, config: RunConfig, bench: Bench) -> tuple[float, Tensor]:
    batches = make_batches(rows, rows, config)
    trainer = create_trainer(loaded, batches, config, bench.run_dir("gradient"))
    (pack,) = batches.train.heaviest_batch
    inputs: dict[str, Any] = {name: value.to(loaded.model.device) for name, value in collate_pack([pack]).items()}
    with trainer.accelerator.autocast():
        loss = trainer.compute_loss(loaded.model, inputs)
    loss.backward()
    return loss.item(), _taken_gradient(loaded)


def _taken_gradient(loaded: LoadedModel) -> Tensor:
    """The gradient of the adapter as one vector; it is zero afterwards."""
    weights = [weight for weight in loaded.model.parameters() if weight.requires_grad]
    found = torch.cat([weight.grad.flatten() for weight in weights if weight.grad is not None])
    loaded.model.zero_grad()
    return found
