"""The memory of a training is estimated before it starts, and measuring it changes nothing."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from unittest.mock import Mock

import pytest
import torch
from tiny_models import tiny_training
from transformers import Glm4Config, Phi3Config, PhiConfig, PreTrainedConfig, Qwen2Config

from training_core.base_model import linear_layers
from training_core.config import RunConfig, SettingsError
from training_core.data_loader import prepare_data
from training_core.dataset.store import load_training_data
from training_core.model_setup import LoadedModel, load_base, load_model_and_tokenizer
from training_core.packing.batches import Batches, BatchSize, make_batches
from training_core.trainer import create_trainer
from training_core.training import memory
from training_core.training.memory import Forecast, measure_heaviest_batch, memory_fix, require_memory
from training_core.training.memory_estimate import MemoryEstimate, estimate_memory
from training_core.utils import pick_precision, set_seed

QWEN25_7B = {
    "model_type": "qwen2",
    "vocab_size": 152_064,
    "hidden_size": 3_584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
SMALL = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
}
BATCH = BatchSize(tokens=8_192, labels=400)


@pytest.fixture
def config(tiny_base: Path, sample_rows: Path, tmp_path: Path) -> RunConfig:
    return tiny_training(
        tiny_base,
        sample_rows,
        tmp_path,
        max_steps=2,
        gradient_accumulation_steps=1,
        max_eval_rows=2,
    )


@pytest.fixture
def batches(config: RunConfig) -> Batches:
    data = load_training_data(prepare_data(config, Path(config.model_name)))
    return make_batches(data.train, data.held_out, config)


@pytest.fixture
def estimate(tmp_path: Path) -> Callable[..., MemoryEstimate]:
    """The estimate for a base of which only config.json is present."""

    def estimate(
        batch: BatchSize = BATCH, architecture: dict[str, Any] = QWEN25_7B, devices: float = 1, **settings: Any
    ) -> MemoryEstimate:
        (tmp_path / "config.json").write_text(json.dumps(architecture))
        return estimate_memory(tmp_path, RunConfig(**settings), batch, 2, devices)

    return estimate


@pytest.mark.parametrize(
    ("change", "terms"),
    [
        ({"architecture": QWEN25_7B | {"num_hidden_layers": 56}}, {"linear_weights", "adapter", "activations"}),
        ({"architecture": QWEN25_7B | {"vocab_size": 304_128}}, {"other_weights"}),
        ({"lora_r": 32}, {"adapter", "gradients", "optimiser"}),
        ({"batch": dataclasses.replace(BATCH, tokens=16_384)}, {"activations"}),
        ({"batch": dataclasses.replace(BATCH, labels=800)}, {"logits"}),
        ({"gradient_checkpointing": False}, {"activations"}),
    ],
)
def test_memory_estimate_grows_with_its_parts(
    estimate: Callable[..., MemoryEstimate], change: dict[str, Any], terms: set[str]
) -> None:
    before, after = dataclasses.asdict(estimate()), dataclasses.asdict(estimate(**change))
    assert all(after[name] >= before[name] for name in before)
    assert terms <= {name for name in before if after[name] > before[name]}
    assert sum(after.values()) == pytest.approx(estimate(**change).total)


def test_memory_estimate_of_a_sharded_base_divides_its_blocks(estimate: Callable[..., MemoryEstimate]) -> None:
    """What is whole: two blocks of 28, NF4's scales, and the head, which is as large as the embeddings."""
    whole, halves, quarters, least = (
        estimate(devices=devices, sharding=sharding)
        for devices, sharding in ((1, "none"), (2, "fsdp"), (4, "fsdp"), (math.inf, "fsdp"))
    )
    gathered = (2 / 28 * 0.5 + 1 / 64 + 4 / 64 / 256) / (0.5 + 1 / 64 + 4 / 64 / 256) * whole.linear_weights
    assert least.linear_weights == pytest.approx(gathered)
    assert halves.linear_weights - gathered == pytest.approx(2 * (quarters.linear_weights - gathered))
    assert [each.other_weights / whole.other_weights for each in (halves, least)] == pytest.approx(
        [0.75, 0.5], rel=1e-3
    )
    assert halves.adapter == whole.adapter


def test_memory_estimate_counts_eight_bit_moments_as_a_quarter(estimate: Callable[..., MemoryEstimate]) -> None:
    assert estimate(optim="paged_adamw_8bit").optimiser == pytest.approx(estimate().optimiser / 4)


# Layers of other names: fused projections, and a feed-forward layer without a gate.
OTHERS = [
    Phi3Config(**SMALL, num_key_value_heads=1, pad_token_id=0),
    PhiConfig(**SMALL),
    Glm4Config(**SMALL, num_key_value_heads=1, head_dim=32, pad_token_id=0),
]


@pytest.mark.parametrize("architecture", OTHERS, ids=lambda config: str(config.model_type))
def test_memory_estimate_knows_no_names_of_layers(
    estimate: Callable[..., MemoryEstimate], architecture: PreTrainedConfig
) -> None:
    facts = architecture.to_dict()
    settings = {"packing": False, "gradient_checkpointing": False}
    few, many = (estimate(architecture=facts | {"num_hidden_layers": blocks}, **settings) for blocks in (4, 8))
    assert many.activations == pytest.approx(2 * few.activations)
    assert few.activations > estimate(architecture=facts, packing=False).activations > 0


def test_memory_estimate_of_fused_layers_is_that_of_separate_ones(estimate: Callable[..., MemoryEstimate]) -> None:
    fused = Phi3Config(**SMALL, num_key_value_heads=1, pad_token_id=0).to_dict()
    separate = Qwen2Config(**SMALL, num_key_value_heads=1).to_dict()
    settings = {"packing": False, "lora_dropout": 0.0}
    one, other = (estimate(architecture=facts, **settings).activations for facts in (fused, separate))
    assert one == pytest.approx(other)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_required_memory_is_that_of_the_precision(
    config: RunConfig, batches: Batches, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU computes in bf16 too where the setting says so."""
    config = RunConfig(**vars(config) | {"precision": precision, "quantisation": "none"})
    estimate = Mock(return_value=SimpleNamespace(total=1.0))
    monkeypatch.setattr(memory, "estimate_memory", estimate)
    memory._require_estimate(2.0, batches, config)
    assert estimate.call_args.args[3:] == ({"fp32": 4, "bf16": 2}[precision], 1)


@pytest.mark.parametrize("quantisation", ["nf4", "none"])
@pytest.mark.parametrize(("precision", "size"), [("fp32", 4), ("bf16", 2)])
def test_memory_estimate_of_weights_is_that_of_loaded_ones(
    config: RunConfig, precision: Literal["fp32", "bf16"], size: int, quantisation: Literal["nf4", "none"]
) -> None:
    """Within a hundredth for NF4; without the constants of double quantisation it would be 3% short."""
    config = dataclasses.replace(config, quantisation=quantisation)
    estimated = estimate_memory(Path(config.model_name), config, BATCH, size)
    base = load_base(Path(config.model_name), pick_precision(precision), quantisation)
    linear = [base.get_submodule(name).weight for name in linear_layers(Path(config.model_name))]
    others = sum(weight.nbytes for weight in base.parameters()) - sum(weight.nbytes for weight in linear)
    assert estimated.other_weights * 2**30 == pytest.approx(others)
    constants = sum(weight.quant_state.absmax.nbytes for weight in linear if hasattr(weight, "quant_state"))
    loaded = constants + sum(weight.nbytes for weight in linear)
    assert estimated.linear_weights * 2**30 == pytest.approx(loaded, rel=0.01)
    adapter = [weight for weight in load_model_and_tokenizer(config).model.parameters() if weight.requires_grad]
    assert estimated.adapter * 2**30 == pytest.approx(sum(weight.nbytes for weight in adapter))


@pytest.mark.slow
@pytest.mark.parametrize("packing", [True, False])
def test_measuring_the_heaviest_batch_changes_no_training(config: RunConfig, tmp_path: Path, packing: bool) -> None:
    config = RunConfig(**vars(config) | {"packing": packing})
    data = load_training_data(prepare_data(config, Path(config.model_name)))
    batches = make_batches(data.train, data.held_out, config)
    trained = []
    for measured in (True, False):
        loaded = load_model_and_tokenizer(config)
        trainer = create_trainer(loaded, batches, config, tmp_path / str(measured))
        if measured:
            before = _adapter(loaded)
            assert measure_heaviest_batch(trainer, batches, config).seconds > 0
            assert torch.equal(_adapter(loaded), before)
            assert all(weight.grad is None for weight in loaded.model.parameters())
        set_seed(config.seed)
        trainer.train()
        trained.append((_adapter(loaded), [log for log in trainer.state.log_history if "loss" in log]))
    (with_measurement, its_curve), (without, curve) = trained
    assert torch.equal(with_measurement, without)
    assert [(log["loss"], log["mean_token_accuracy"]) for log in its_curve] == [
        (log["loss"], log["mean_token_accuracy"]) for log in curve
    ]


def _adapter(loaded: LoadedModel) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in loaded.model.parameters() if weight.requires_grad])


def test_heaviest_batch_is_the_longest_of_all(batches: Batches, config: RunConfig) -> None:
    sizes = [len(example["input_ids"]) for example in batches.train_order]
    assert len(batches.train.heaviest_batch[0]["input_ids"]) == batches.train.tokens_at_most >= max(sizes)


def test_memory_error_in_a_batch_names_the_fix(config: RunConfig, batches: Batches, tmp_path: Path) -> None:
    loaded = load_model_and_tokenizer(config)
    trainer = create_trainer(loaded, batches, config, tmp_path)

    def run_out(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    loaded.model.register_forward_pre_hook(run_out)
    with pytest.raises(SettingsError, match=r"tokens, does not fit in .* GiB: set max_seq_length 1024"):
        measure_heaviest_batch(trainer, batches, config)


def test_batch_that_cannot_fit_is_rejected_before_it_runs(
    config: RunConfig, batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU the system would end the process without a word."""
    loaded = load_model_and_tokenizer(config)
    trainer = create_trainer(loaded, batches, config, tmp_path)
    loaded.model.register_forward_pre_hook(lambda *_: pytest.fail("the batch ran"))
    monkeypatch.setattr(memory, "memory_to_have_gib", lambda: 0.001)
    with pytest.raises(SettingsError, match=r"GiB, 0\.0 are free: set max_seq_length 1024"):
        measure_heaviest_batch(trainer, batches, config)


def test_time_forecast_leaves_out_a_slow_first_batch(
    config: RunConfig, batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiling kernels comes once; by this clock it takes 1,000 s, and any other batch 1 s."""
    loaded = load_model_and_tokenizer(config)
    trainer = create_trainer(loaded, batches, config, tmp_path)
    passed = [0.0]
    seconds = itertools.chain([1000.0], itertools.repeat(1.0))
    loaded.model.register_forward_pre_hook(lambda *_: passed.append(passed[-1] + next(seconds)))
    monkeypatch.setattr(memory, "time", SimpleNamespace(monotonic=lambda: passed[-1]))
    forecast = measure_heaviest_batch(trainer, batches, config)
    assert (forecast.measured_in_seconds, forecast.seconds < 100) == (1003.0, True)


def test_memory_forecast_above_the_device_is_rejected() -> None:
    require_memory(Forecast(23.9, 24.0, 1.0, 1.0), RunConfig())
    with pytest.raises(SettingsError, match=r"needs 30\.0 GiB, 24\.0 are free: set gradient_checkpointing true"):
        require_memory(Forecast(30.0, 24.0, 1.0, 1.0), RunConfig(gradient_checkpointing=False))


def test_memory_fix_keeps_the_rows_of_a_step() -> None:
    assert memory_fix(RunConfig()) == "set per_device_train_batch_size 2 and gradient_accumulation_steps 16"
    assert "max_seq_length 1024" in memory_fix(RunConfig(per_device_train_batch_size=1))


def test_memory_fix_quantises_before_rows_get_shorter() -> None:
    assert memory_fix(RunConfig(per_device_train_batch_size=1, quantisation="none")) == "set quantisation nf4"


def test_memory_fix_makes_packs_smaller_than_they_are() -> None:
    """By default a pack may have 8,192 tokens; half of them change nothing for one of 3,000."""
    assert memory_fix(RunConfig(), 3_000) == "set per_device_train_batch_size 1 and gradient_accumulation_steps 32"
    assert "max_seq_length 1024" in memory_fix(RunConfig(), 1_500)
    assert "batch_size 2" in memory_fix(RunConfig(packing=False), 1_500)


def test_peak_memory_of_a_gpu_is_what_its_allocator_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it keeps between tensors nobody else can have."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 3 * 2**30)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2 * 2**30)
    assert memory.peak_memory_gib() == 3
