"""Training that can be killed at any time and goes on where it was."""

import json
import logging
import math
import resource
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.compute
import torch
from datasets import Dataset
from filelock import FileLock
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from training_core.checkpoints import latest_complete_checkpoint, seal, step_of
from training_core.config import RunConfig
from training_core.data_store import TrainingData
from training_core.evaluation import held_out_sample
from training_core.journal import Point, append_point, mend_journal, read_journal
from training_core.model_setup import LoadedModel
from training_core.packing import collate_pack, pack_limits, packed_dataset, plan_packing
from training_core.prefix_attention import use_shared_prefix_attention
from training_core.utils import Precision, set_seed

logger = logging.getLogger(__name__)

SUMMARY_FILE = "training.json"

_CURVE = (
    "loss",
    "eval_loss",
    "learning_rate",
    "grad_norm",
    "mean_token_accuracy",
    "eval_mean_token_accuracy",
)


@dataclass(frozen=True)
class TrainingSummary:
    """What a training took. Seconds are those of the last process alone; memory is its peak in GiB; the final loss is
    the last point of the curve."""

    steps: int
    resumed_from_step: int
    final_loss: float
    seconds: float
    peak_memory_gib: float


@dataclass(frozen=True)
class Cadence:
    """Steps between two points of the curve, checkpoints and measurements of the held-out loss."""

    logging: int
    saving: int
    evaluation: int

    @classmethod
    def of(cls, config: RunConfig, steps: int) -> "Cadence":
        """As asked for, but often enough that a short run has a curve and at least three checkpoints.

        Checkpoints fall on points of the curve: a point averages the steps since the one before, and a resumed
        process knows only those after its checkpoint.
        """
        saving = min(config.save_steps, max(1, steps // 4))
        curve = min(config.logging_steps, max(1, steps // 20), saving)
        return cls(curve, saving - saving % curve, min(config.eval_steps, max(1, steps // 4)))


@dataclass(frozen=True)
class Steps:
    """How examples (rows, or packs of rows) make up a training: per device and batch, per optimiser step, in all."""

    batch_size: int
    accumulation: int
    total: int

    @classmethod
    def of(cls, config: RunConfig, examples: int, batch_size: int, accumulation: int) -> "Steps":
        per_epoch = math.ceil(math.ceil(examples / batch_size) / accumulation)
        return cls(batch_size, accumulation, config.max_steps or math.ceil(per_epoch * config.num_train_epochs))


def create_training_arguments(config: RunConfig, precision: Precision, steps: Steps, output_dir: Path) -> SFTConfig:
    """The one place where our settings become the trainer's."""
    cadence = Cadence.of(config, steps.total)
    return SFTConfig(
        output_dir=str(output_dir),
        seed=config.seed,
        data_seed=config.seed,
        num_train_epochs=config.num_train_epochs,
        max_steps=steps.total,
        per_device_train_batch_size=steps.batch_size,
        per_device_eval_batch_size=1 if config.packing else config.per_device_eval_batch_size,
        gradient_accumulation_steps=steps.accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=config.warmup_ratio,  # below 1 it is a share of all steps
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim=config.optim,
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if config.gradient_checkpointing else None,
        bf16=precision.name == "bf16",
        fp16=precision.name == "fp16",
        logging_steps=cadence.logging,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=cadence.saving,
        save_total_limit=config.save_total_limit,
        eval_strategy="steps",
        eval_steps=cadence.evaluation,
        max_length=None,  # rows were measured when they were encoded; the trainer must never cut one
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def train_model(loaded: LoadedModel, data: TrainingData, config: RunConfig, run_dir: Path) -> TrainingSummary:
    """Train the adapter from the last complete checkpoint in ``run_dir``, or from the start.

    Writes ``checkpoints/``, ``journal.jsonl`` and ``training.json``. A training killed at any time and started again
    ends with the same weights, bit by bit. Raises ``filelock.Timeout`` when another process trains in the same folder.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(run_dir / "training.lock", timeout=1):
        set_seed(config.seed)
        trainer = _create_trainer(loaded, data, config, run_dir)
        checkpoint = latest_complete_checkpoint(run_dir / "checkpoints")
        resumed_from = (step_of(checkpoint) if checkpoint else 0) or 0
        logger.info("Training starts from %s", f"checkpoint {resumed_from}" if checkpoint else "the beginning")
        started = time.monotonic()
        if checkpoint and resumed_from >= trainer.args.max_steps:
            # The trainer looks at max_steps only after a step, so it would take one too many.
            loaded.model.load_adapter(str(checkpoint), "default", is_trainable=True)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        losses = [point.values["loss"] for point in read_journal(run_dir / "journal.jsonl") if "loss" in point.values]
        summary = TrainingSummary(
            steps=trainer.args.max_steps,
            resumed_from_step=resumed_from,
            final_loss=losses[-1],
            seconds=time.monotonic() - started,
            peak_memory_gib=peak_memory_gib(),
        )
        text = json.dumps(asdict(summary), indent=2) + "\n"
        (run_dir / SUMMARY_FILE).write_text(text, encoding="utf-8")
    return summary


def _create_trainer(loaded: LoadedModel, data: TrainingData, config: RunConfig, run_dir: Path) -> SFTTrainer:
    train, held_out, steps = _batches(loaded, data, config)
    trainer = SFTTrainer(
        model=loaded.model,
        processing_class=loaded.tokenizer,
        args=create_training_arguments(config, loaded.precision, steps, run_dir / "checkpoints"),
        data_collator=collate_pack if config.packing else None,
        train_dataset=train,
        eval_dataset=held_out,
        callbacks=[SealCheckpoints(), KeepJournal(run_dir / "journal.jsonl", tokens_per_step(data.train, config))],
    )
    trainer.remove_callback(PrinterCallback)
    # The trainer rounds the adapter of a quantised model to bf16, and such an adapter does not resume exactly.
    for parameter in loaded.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def _batches(loaded: LoadedModel, data: TrainingData, config: RunConfig) -> tuple[Dataset, Dataset, Steps]:
    """Training and held-out examples as the trainer takes them, and the steps they make."""
    train = data.train.select_columns(["input_ids", "labels"])
    held_out = held_out_sample(data.held_out, config).select_columns(["input_ids", "labels"])
    rows, accumulation = config.per_device_train_batch_size, config.gradient_accumulation_steps
    if not config.packing:
        return train, held_out, Steps.of(config, len(train), rows, accumulation)
    use_shared_prefix_attention(loaded.model)
    budget, rows_per_step = pack_limits(config)
    plan = plan_packing(train, budget, rows_per_step, config.seed)
    if plan.sharing_rows and config.lora_dropout:
        logger.info("Packing: rows share the dropout mask of what they share; lora_dropout 0 is exact")
    in_turn = plan_packing(held_out, budget, len(held_out), config.seed)
    steps = Steps.of(config, len(plan.packs), 1, plan.packs_per_step)
    return packed_dataset(train, plan), packed_dataset(held_out, in_turn), steps


def tokens_per_step(rows: Dataset, config: RunConfig) -> float:
    """Real tokens, prompts and answers, in the rows of an optimiser step on average; every row counts in full."""
    per_row = pyarrow.compute.mean(pyarrow.compute.list_value_length(rows.data.column("input_ids"))).as_py()
    return per_row * min(len(rows), config.per_device_train_batch_size * config.gradient_accumulation_steps)


def peak_memory_gib() -> float:
    """The most memory this process has held so far: on the GPU where there is one, else in RAM."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class SealCheckpoints(TrainerCallback):
    """Declares each checkpoint complete once all of its files are written."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")


class KeepJournal(TrainerCallback):
    """Writes the loss curve to the journal, each point once however often its step is repeated.

    With every loss stand what the steps since the last start have cost: seconds, real tokens a second, peak memory.
    """

    def __init__(self, path: Path, tokens_per_step: float) -> None:
        self.path = path
        self.tokens_per_step = tokens_per_step
        self.known: set[tuple[int, str]] = set()
        self.started = (0.0, 0)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.known = {(point.step, name) for point in mend_journal(self.path) for name in point.values}
        self.started = (time.monotonic(), state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        new = {
            name: float(value)
            for name, value in (logs or {}).items()
            if name in _CURVE and (state.global_step, name) not in self.known
        }
        seconds = self._seconds_per_step(state)
        if "loss" in new:
            new["seconds_per_step"] = seconds
            new["tokens_per_second"] = self.tokens_per_step / seconds
            new["peak_memory_gib"] = peak_memory_gib()
        if new:
            append_point(self.path, Point(state.global_step, state.max_steps, time.time(), new))
            logger.info(
                "Step %d of %d: %s, %.0f real tokens/s, %s left",
                state.global_step,
                state.max_steps,
                _show(new),
                self.tokens_per_step / seconds,
                timedelta(seconds=round(seconds * (state.max_steps - state.global_step))),
            )

    def _seconds_per_step(self, state: TrainerState) -> float:
        started_at, started_step = self.started
        return (time.monotonic() - started_at) / max(1, state.global_step - started_step)


def _show(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items() if "loss" in name or "accuracy" in name)
