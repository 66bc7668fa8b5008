"""Training that can be killed at any time and goes on where it was."""

import json
import logging
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from filelock import FileLock
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from training_core.config import RunConfig
from training_core.dataset.store import TrainingData
from training_core.folders import complete_file
from training_core.model_setup import LoadedModel
from training_core.packing.attention import use_shared_prefix_attention
from training_core.packing.batches import Batches, Steps, make_batches
from training_core.packing.plan import collate_pack
from training_core.training.activation_checkpointing import checkpointing_arguments
from training_core.training.callbacks import KeepJournal, SealCheckpoints
from training_core.training.checkpoints import latest_complete_checkpoint, step_of
from training_core.training.gpu_lock import hold_gpu
from training_core.training.journal import read_journal
from training_core.training.memory import measure_heaviest_batch, peak_memory_gib, require_memory
from training_core.utils import Precision, set_seed

logger = logging.getLogger(__name__)

SUMMARY_FILE = "training.json"


@dataclass(frozen=True)
class TrainingSummary:
    """What a training took. Seconds are those since the last start; memory is the peak on the first device in GiB; the
    final loss is the last point of the curve."""

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


def create_training_arguments(config: RunConfig, precision: Precision, steps: Steps, output_dir: Path) -> SFTConfig:
    """The one place where our settings become the trainer's."""
    cadence = Cadence.of(config, steps.total)
    return SFTConfig(
        output_dir=str(output_dir),
        seed=config.seed,
        data_seed=config.seed,
        max_steps=steps.total,
        train_sampling_strategy="sequential",  # passes and their order are laid out already
        per_device_train_batch_size=steps.batch_size,
        per_device_eval_batch_size=1 if config.packing else config.per_device_eval_batch_size,
        gradient_accumulation_steps=steps.accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=config.warmup_ratio,  # below 1 it is a share of all steps
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim=config.optim,
        use_cpu=not torch.cuda.is_available(),
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
        **checkpointing_arguments(enabled=config.gradient_checkpointing),
    )


def train_model(loaded: LoadedModel, data: TrainingData, config: RunConfig, run_dir: Path) -> TrainingSummary:
    """Train the adapter from the last complete checkpoint in ``run_dir``, or from the start.

    Writes ``checkpoints/``, ``journal.jsonl`` and ``training.json``. A training killed at any time and started again
    ends with the same weights, bit by bit. Where this process is one of several that were started together, each trains
    on its own device, and the first one writes. Raises ``filelock.Timeout`` when another process trains in the same
    folder, ``RuntimeError`` when another training holds the GPU, and ``SettingsError`` when a step does not fit.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    record = run_dir / SUMMARY_FILE
    ranks = PartialState()
    lock = FileLock(run_dir / "training.lock", timeout=1)
    with hold_gpu(run_dir), lock if ranks.is_main_process else nullcontext():
        with ranks.main_process_first():  # the others then find nothing left to delete
            checkpoint = latest_complete_checkpoint(run_dir / "checkpoints")
        resumed_from = (step_of(checkpoint) if checkpoint else 0) or 0
        logger.info("Training starts from %s", f"checkpoint {resumed_from}" if checkpoint else "the beginning")
        batches = make_batches(data.train, data.held_out, config, ranks.num_processes)
        started = time.monotonic()
        if checkpoint and resumed_from >= batches.steps.total:
            # The trainer looks at max_steps only after a step, so it would take one too many.
            loaded.model.load_adapter(str(checkpoint), "default", is_trainable=True)
            if record.is_file():
                return TrainingSummary(**json.loads(record.read_text(encoding="utf-8")))
        else:
            trainer = create_trainer(loaded, batches, config, run_dir)
            share_left = 1 - resumed_from / batches.steps.total
            require_memory(measure_heaviest_batch(trainer, batches, config, share_left), config)
            set_seed(config.seed + ranks.process_index)  # each device draws a dropout of its own
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        losses = [point.values["loss"] for point in read_journal(run_dir / "journal.jsonl") if "loss" in point.values]
        summary = TrainingSummary(
            steps=batches.steps.total,
            resumed_from_step=resumed_from,
            final_loss=losses[-1],
            seconds=time.monotonic() - started,
            peak_memory_gib=peak_memory_gib(),
        )
        if ranks.is_main_process:
            with complete_file(record) as draft:
                draft.write_text(json.dumps(asdict(summary), indent=2) + "\n", encoding="utf-8")
    return summary


def create_trainer(loaded: LoadedModel, batches: Batches, config: RunConfig, run_dir: Path) -> SFTTrainer:
    """The trainer of this process. Raises ``RuntimeError`` when the process sees GPUs that it would not know to use."""
    ranks = PartialState()
    if torch.cuda.device_count() > ranks.num_processes == 1:
        # The trainer would share a batch out among threads, which a four-bit model does not survive.
        raise RuntimeError("one process sees several GPUs: use train_on_devices, or set CUDA_VISIBLE_DEVICES to one")
    if config.packing:
        use_shared_prefix_attention(loaded.model)
    if batches.sharing_rows and config.lora_dropout:
        logger.info("Packing: rows share the dropout mask of what they share; lora_dropout 0 is exact")
    if batches.steps.idle:
        idle, devices = f"{batches.steps.idle:.0%}", ranks.num_processes
        logger.warning("%s of the time of %d devices is left unused: raise gradient_accumulation_steps", idle, devices)
    trainer = SFTTrainer(
        model=loaded.model,
        processing_class=loaded.tokenizer,
        args=create_training_arguments(config, loaded.precision, batches.steps, run_dir / "checkpoints"),
        data_collator=collate_pack if config.packing else None,
        train_dataset=batches.train_order,
        eval_dataset=batches.held_out_order,
        callbacks=[
            SealCheckpoints(),
            *([KeepJournal(run_dir / "journal.jsonl", batches.tokens_per_step)] if ranks.is_main_process else []),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    # The trainer rounds the adapter of a quantised model to bf16, and such an adapter does not resume exactly.
    for parameter in loaded.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer
