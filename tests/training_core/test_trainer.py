"""Training changes only the adapter, in full precision, and resumes where it was."""

import errno
import json
import signal
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tiny_models import tiny_training
from transformers import TrainerControl, TrainerState, TrainingArguments

from training_core.config import RunConfig
from training_core.data_loader import prepare_data
from training_core.dataset.store import load_training_data
from training_core.evaluation.comparison import EvaluatedModel, compare_models
from training_core.evaluation.generation import cached_prefix, generate
from training_core.evaluation.scores import prompt_of
from training_core.folders import seal_digest
from training_core.model_setup import LoadedModel, load_adapted_model, load_model_and_tokenizer
from training_core.packing.batches import Steps, tokens_per_step
from training_core.trainer import Cadence, create_training_arguments, train_model
from training_core.training.adapter import write_adapter
from training_core.training.callbacks import KeepJournal
from training_core.training.journal import Point, append_point, read_journal
from training_core.utils import Precision


@pytest.fixture
def config(tiny_base: Path, sample_rows: Path, tmp_path: Path) -> RunConfig:
    return tiny_training(
        tiny_base,
        sample_rows,
        tmp_path,
        max_steps=4,
        gradient_accumulation_steps=2,
        gradient_checkpointing=False,
        max_eval_rows=4,
        eval_max_new_tokens=4,
    )


def weights(loaded: LoadedModel, trained: bool) -> dict[str, torch.Tensor]:
    return {
        name: parameter.detach().clone()
        for name, parameter in loaded.model.named_parameters()
        if parameter.requires_grad == trained
    }


@pytest.mark.slow
@pytest.mark.parametrize("packing", [True, False])
def test_training_changes_every_adapter_weight_and_no_other(config: RunConfig, tmp_path: Path, packing: bool) -> None:
    config = RunConfig(**vars(config) | {"packing": packing, "gradient_checkpointing": packing})
    loaded = load_model_and_tokenizer(config)
    data = load_training_data(prepare_data(config, Path(config.model_name)))
    adapter, base = weights(loaded, trained=True), weights(loaded, trained=False)
    summary = train_model(loaded, data, config, tmp_path / "run")
    after = weights(loaded, trained=True)
    assert summary.steps == 4
    assert all(weight.dtype == torch.float32 for weight in after.values())
    assert [name for name, weight in after.items() if torch.equal(weight, adapter[name])] == []
    assert all(torch.equal(weight, base[name]) for name, weight in weights(loaded, trained=False).items())


@pytest.mark.slow
def test_resumed_training_ends_with_the_same_weights(config: RunConfig, tmp_path: Path) -> None:
    data = load_training_data(prepare_data(config, Path(config.model_name)))
    whole, resumed = load_model_and_tokenizer(config), load_model_and_tokenizer(config)
    train_model(whole, data, config, tmp_path / "run")
    curve = read_journal(tmp_path / "run" / "journal.jsonl")
    for later in (tmp_path / "run" / "checkpoints").glob("checkpoint-[34]"):
        (later / "manifest.json").unlink()  # as if the process had died while it was written
    summary = train_model(resumed, data, config, tmp_path / "run")
    assert summary.resumed_from_step == 2
    expected = weights(whole, trained=True)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(resumed, trained=True).items())
    assert read_journal(tmp_path / "run" / "journal.jsonl") == curve
    assert all(seal_digest(path) for path in (tmp_path / "run" / "checkpoints").glob("checkpoint-*"))


@pytest.mark.slow
def test_interrupted_training_saves_and_ends_with_the_same_weights(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next checkpoint would be that of step 4."""
    config = RunConfig(**vars(config) | {"save_steps": 4, "max_steps": 12})
    data = load_training_data(prepare_data(config, Path(config.model_name)))
    whole, resumed = load_model_and_tokenizer(config), load_model_and_tokenizer(config)
    train_model(whole, data, config, tmp_path / "whole")

    def interrupt(path: Path, point: Point) -> None:
        append_point(path, point)
        if point.step == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("training_core.training.callbacks.append_point", interrupt)
        train_model(load_model_and_tokenizer(config), data, config, tmp_path / "run")
    assert train_model(resumed, data, config, tmp_path / "run").resumed_from_step == 3
    expected = weights(whole, trained=True)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(resumed, trained=True).items())


@pytest.mark.slow
def test_damaged_summary_of_a_finished_training_is_written_again(config: RunConfig, tmp_path: Path) -> None:
    data = load_training_data(prepare_data(config, Path(config.model_name)))
    train_model(load_model_and_tokenizer(config), data, config, tmp_path / "run")
    summary = tmp_path / "run" / "training.json"
    summary.write_text(summary.read_text()[:20])
    assert train_model(load_model_and_tokenizer(config), data, config, tmp_path / "run").steps == 4
    assert json.loads(summary.read_text())["steps"] == 4


@pytest.mark.slow
def test_finished_training_takes_no_further_step(config: RunConfig, tmp_path: Path) -> None:
    config = RunConfig(**vars(config) | {"lr_scheduler_type": "constant"})
    data = load_training_data(prepare_data(config, Path(config.model_name)))
    first, again = load_model_and_tokenizer(config), load_model_and_tokenizer(config)
    train_model(first, data, config, tmp_path / "run")
    before = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    curve = read_journal(tmp_path / "run" / "journal.jsonl")
    assert train_model(again, data, config, tmp_path / "run").steps == 4
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == before
    assert read_journal(tmp_path / "run" / "journal.jsonl") == curve
    expected = weights(first, trained=True)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(again, trained=True).items())


@pytest.mark.slow
def test_summary_survives_a_full_disk_at_the_end(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run = load_training_data(prepare_data(config, Path(config.model_name))), tmp_path / "run"
    write_text = Path.write_text

    def fill_up(path: Path, text: str, encoding: str) -> int:
        write_text(path, text[: len(text) // 2], encoding)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk, pytest.raises(OSError, match="No space left"):
        disk.setattr(Path, "write_text", fill_up)
        train_model(load_model_and_tokenizer(config), data, config, run)
    assert not (run / "training.json").exists()
    summary = train_model(load_model_and_tokenizer(config), data, config, run)
    assert json.loads((run / "training.json").read_text()) == asdict(summary)
    assert list(run.glob("*.draft")) == []


@pytest.mark.slow
def test_training_after_an_evaluation_gives_the_same_weights(config: RunConfig, tmp_path: Path) -> None:
    """On CPUs with AVX512-bf16 bitsandbytes repacks weights at the first evaluation, for a kernel without gradient."""
    data = load_training_data(prepare_data(config, Path(config.model_name)))
    fresh, used = load_model_and_tokenizer(config), load_model_and_tokenizer(config)
    compare_models(EvaluatedModel(used, data.leakage_keys), None, data, config)
    for loaded, folder in ((fresh, "fresh"), (used, "used")):
        train_model(loaded, data, config, tmp_path / folder)
    expected = weights(fresh, trained=True)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(used, trained=True).items())


@pytest.fixture(scope="module", params=["nf4", "none"])
def in_bf16(
    tiny_base: Path, sample_rows: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[LoadedModel, Path, list[list[int]], set[torch.dtype]]:
    """A model trained in bf16, as on a GPU, the folder of its adapter, prompts, and the formats it trained in."""
    folder = tmp_path_factory.mktemp("bf16")
    settings = {"max_steps": 2, "precision": "bf16", "max_eval_rows": 4, "quantisation": request.param}
    config = tiny_training(tiny_base, sample_rows, folder, **settings)
    data = load_training_data(prepare_data(config, tiny_base))
    loaded = load_model_and_tokenizer(config)
    seen: set[torch.dtype] = set()
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: seen.add(output.dtype))
        for name, module in loaded.model.named_modules()
        if name.endswith(("embed_tokens", "norm", "layernorm", "q_proj", "k_proj", "v_proj", "o_proj", "down_proj"))
    ]
    train_model(loaded, data, config, folder / "run")
    for hook in hooks:
        hook.remove()
    write_adapter(loaded.model, loaded.tokenizer, config, data.leakage_keys, folder / "adapter")
    return loaded, folder / "adapter", [prompt_of(row) for row in data.held_out.select(range(4))], seen


@pytest.mark.slow
def test_training_in_bf16_keeps_only_the_adapter_in_fp32(
    in_bf16: tuple[LoadedModel, Path, list[list[int]], set[torch.dtype]],
) -> None:
    loaded, adapter, _, seen = in_bf16
    assert seen == {torch.bfloat16}
    formats = {(weight.requires_grad, weight.dtype) for weight in loaded.model.parameters()}
    stored = {(False, torch.uint8)} if RunConfig.load(adapter).quantisation == "nf4" else set()
    assert formats == {(True, torch.float32), (False, torch.bfloat16)} | stored


@pytest.mark.slow
def test_trained_model_computes_as_the_reloaded_one_in_bf16(
    in_bf16: tuple[LoadedModel, Path, list[list[int]], set[torch.dtype]], tiny_base: Path
) -> None:
    loaded, adapter, prompts, _ = in_bf16
    reloaded = load_adapted_model(tiny_base, adapter)
    assert reloaded.precision.name == "bf16"
    ours, theirs = (
        [layer.keys for prompt in prompts for layer in cached_prefix(model.model.eval(), prompt).layers]
        for model in (loaded, reloaded)
    )
    assert {keys.dtype for keys in ours} == {torch.bfloat16}
    assert all(torch.equal(*keys) for keys in zip(ours, theirs, strict=True))
    config = RunConfig(eval_max_new_tokens=8)
    assert generate(loaded, prompts, config) == generate(reloaded, prompts, config)


def test_journal_has_the_cost_of_steps_with_losses(tmp_path: Path) -> None:
    journal = KeepJournal(tmp_path / "journal.jsonl", tokens_per_step=1000)
    arguments, state, control = TrainingArguments(str(tmp_path)), TrainerState(max_steps=4), TrainerControl()
    journal.on_train_begin(arguments, state, control)
    state.global_step = 2
    journal.on_log(arguments, state, control, logs={"loss": 0.5, "epoch": 1})
    journal.on_log(arguments, state, control, logs={"eval_loss": 0.25})
    trained, held_out = read_journal(tmp_path / "journal.jsonl")
    assert trained.values["tokens_per_second"] == pytest.approx(1000 / trained.values["seconds_per_step"])
    assert trained.values["peak_memory_gib"] > 0
    assert held_out.values == {"eval_loss": 0.25}


def test_tokens_before_sharing_count_whole_rows() -> None:
    rows = Dataset.from_dict({"input_ids": [[1] * 3, [1] * 5, [1] * 7, [1] * 9]})
    assert tokens_per_step(rows, RunConfig(per_device_train_batch_size=1, gradient_accumulation_steps=2)) == 12
    assert tokens_per_step(rows, RunConfig(per_device_train_batch_size=4, gradient_accumulation_steps=8)) == 24


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7, 12, 39, 255, 10_000])
def test_cadence_gives_any_run_curve_and_checkpoints(steps: int) -> None:
    cadence = Cadence.of(RunConfig(save_steps=500, logging_steps=10, eval_steps=500), steps)
    assert steps // cadence.saving >= min(3, steps)
    assert cadence.saving % cadence.logging == 0
    assert cadence.saving <= 500 and cadence.logging <= 10 and cadence.evaluation <= 500


def test_training_arguments_hold_the_settings(tmp_path: Path) -> None:
    config = RunConfig(warmup_ratio=0.25, weight_decay=0.5, lr_scheduler_type="linear", seed=9, max_grad_norm=0.3)
    arguments = create_training_arguments(config, Precision("fp32", ""), Steps.of(config, 64, 4, 8), tmp_path)
    assert arguments.max_length is None
    assert arguments.get_warmup_steps(100) == 25
    assert (arguments.seed, arguments.data_seed, arguments.weight_decay, arguments.max_grad_norm) == (9, 9, 0.5, 0.3)
    assert str(arguments.lr_scheduler_type.value) == "linear"
    assert not arguments.bf16 and not arguments.fp16
    assert arguments.ddp_find_unused_parameters is False  # a search in every step, for nothing
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (4, 8)
