"""What a training needs is known before it starts, and asking changes nothing."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_training

from training_core.config import RunConfig, SettingsError
from training_core.data_loader import prepare_data
from training_core.dataset.store import load_training_data
from training_core.model_setup import LoadedModel, load_model_and_tokenizer, load_quantised_base
from training_core.packing.batches import Batches, BatchSize, make_batches
from training_core.trainer import create_trainer
from training_core.training.memory import (
    Forecast,
    MemoryEstimate,
    estimate_memory,
    measure_heaviest_batch,
    memory_fix,
    require_memory,
)
from training_core.utils import pick_precision, set_seed

QWEN25_7B = {
    "vocab_size": 152_064,
    "hidden_size": 3_584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
BATCH = BatchSize(tokens=8_192, labels=400, longest_row=2_048)


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


def estimate(batch: BatchSize = BATCH, architecture: dict[str, Any] = QWEN25_7B, **settings: Any) -> MemoryEstimate:
    return estimate_memory(architecture, RunConfig(**settings), batch, 2)


@pytest.mark.parametrize(
    ("change", "terms"),
    [
        ({"architecture": QWEN25_7B | {"num_hidden_layers": 56}}, {"quantised_weights", "adapter", "activations"}),
        ({"architecture": QWEN25_7B | {"vocab_size": 304_128}}, {"other_weights"}),
        ({"lora_r": 32}, {"adapter", "gradients", "optimiser"}),
        ({"batch": dataclasses.replace(BATCH, tokens=16_384)}, {"activations"}),
        ({"batch": dataclasses.replace(BATCH, labels=800)}, {"logits"}),
        ({"batch": dataclasses.replace(BATCH, longest_row=4_096)}, {"attention"}),
        ({"gradient_checkpointing": False}, {"activations"}),
    ],
)
def test_more_of_anything_needs_more_memory_where_it_is_held(change: dict[str, Any], terms: set[str]) -> None:
    before, after = dataclasses.asdict(estimate()), dataclasses.asdict(estimate(**change))
    assert all(after[name] >= before[name] for name in before)
    assert terms <= {name for name in before if after[name] > before[name]}
    assert sum(after.values()) == pytest.approx(estimate(**change).total)


def test_eight_bit_moments_take_a_quarter() -> None:
    assert estimate(optim="paged_adamw_8bit").optimiser == pytest.approx(estimate().optimiser / 4)


def test_weights_are_reckoned_as_they_are_loaded(config: RunConfig) -> None:
    """Within a hundredth; without the constants of double quantisation, NF4 would be 3% short."""
    architecture = json.loads((Path(config.model_name) / "config.json").read_text())
    reckoned = estimate_memory(architecture, config, BATCH, 4)
    base = load_quantised_base(Path(config.model_name), pick_precision())
    others = [weight for weight in base.parameters() if weight.dtype != torch.uint8]
    assert reckoned.other_weights * 2**30 == pytest.approx(sum(weight.nbytes for weight in others), rel=0.01)
    quantised = [module.weight for module in base.modules() if hasattr(module, "quant_state")]
    loaded = sum(weight.nbytes + weight.quant_state.absmax.nbytes for weight in quantised)
    assert reckoned.quantised_weights * 2**30 == pytest.approx(loaded, rel=0.01)
    adapter = [weight for weight in load_model_and_tokenizer(config).model.parameters() if weight.requires_grad]
    assert reckoned.adapter * 2**30 == pytest.approx(sum(weight.nbytes for weight in adapter))


@pytest.mark.slow
@pytest.mark.parametrize("packing", [True, False])
def test_a_probed_training_is_the_training_without_a_probe_bit_by_bit(
    config: RunConfig, tmp_path: Path, packing: bool
) -> None:
    config = RunConfig(**vars(config) | {"packing": packing})
    data = load_training_data(prepare_data(config, Path(config.model_name)))
    batches = make_batches(data.train, data.held_out, config)
    trained = []
    for probed in (True, False):
        loaded = load_model_and_tokenizer(config)
        trainer = create_trainer(loaded, batches, config, tmp_path / str(probed))
        if probed:
            before = _adapter(loaded)
            assert measure_heaviest_batch(trainer, batches, config).seconds > 0
            assert torch.equal(_adapter(loaded), before)
            assert all(weight.grad is None for weight in loaded.model.parameters())
        set_seed(config.seed)
        trainer.train()
        trained.append((_adapter(loaded), [log for log in trainer.state.log_history if "loss" in log]))
    (with_probe, its_curve), (without, curve) = trained
    assert torch.equal(with_probe, without)
    assert [(log["loss"], log["mean_token_accuracy"]) for log in its_curve] == [
        (log["loss"], log["mean_token_accuracy"]) for log in curve
    ]


def _adapter(loaded: LoadedModel) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in loaded.model.parameters() if weight.requires_grad])


def test_the_heaviest_batch_is_the_one_that_is_probed(batches: Batches, config: RunConfig) -> None:
    sizes = [len(example["input_ids"]) for example in batches.train_order]
    assert len(batches.train.heaviest_batch[0]["input_ids"]) == batches.train.tokens_at_most >= max(sizes)


def test_a_batch_that_does_not_fit_is_rejected_with_what_to_change(
    config: RunConfig, batches: Batches, tmp_path: Path
) -> None:
    loaded = load_model_and_tokenizer(config)
    trainer = create_trainer(loaded, batches, config, tmp_path)

    def run_out(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    loaded.model.register_forward_pre_hook(run_out)
    with pytest.raises(SettingsError, match=r"tokens does not fit in .* GiB: set per_device_train_batch_size 1"):
        measure_heaviest_batch(trainer, batches, config)


def test_a_training_that_will_not_fit_is_rejected_with_figures_and_fix() -> None:
    require_memory(Forecast(23.9, 24.0, 1.0, 1.0), RunConfig())
    with pytest.raises(
        SettingsError, match=r"30\.0 GiB are needed and there are 24\.0: set gradient_checkpointing true"
    ):
        require_memory(Forecast(30.0, 24.0, 1.0, 1.0), RunConfig(gradient_checkpointing=False))


def test_remedies_lead_to_less_memory_and_keep_the_rows_of_a_step_as_long_as_they_can() -> None:
    assert memory_fix(RunConfig()) == "set per_device_train_batch_size 2 and gradient_accumulation_steps 16"
    assert "max_seq_length 1024" in memory_fix(RunConfig(per_device_train_batch_size=1))
