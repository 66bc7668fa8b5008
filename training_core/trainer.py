"""Training that can be killed at any time and resumes from its last complete checkpoint."""

import json
import logging
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from filelock import FileLock
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from training_core.config import RunConfig
from training_core.dataset.store import TrainingData
from training_core.folders import complete_file
from training_core.model_setup import LoadedModel
from training_core.packing.attention import use_shared_prefix_attention
from training_core.packing.batches import NOTABLY_IDLE, Batches, Steps
from training_core.packing.capabilities import kernels
from training_core.packing.plan import collate_pack
from training_core.training.activation_checkpointing import checkpointing_arguments
from training_core.training.callbacks import KeepJournal, SealCheckpoints
from training_core.training.checkpoints import latest_complete_checkpoint, step_of
from training_core.training.finite import RequireFinite
from training_core.training.gpu_lock import hold_gpu
from training_core.training.interruption import save_when_interrupted
from training_core.training.journal import read_journal
from training_core.training.memory import measure_heaviest_batch, memory_fix, peak_memory_gib, require_memory
from training_core.training.out_of_memory import explain_out_of_memory, halved_batches
from training_core.training.sharding import average_gradients, shard_base
from training_core.utils import Precision, set_seed

logger = logging.getLogger(__name__)

SUMMARY_FILE = "training.json"


@dataclass(frozen=True)
class TrainingSummary:
    """What a training cost and where it ended.

    ``seconds`` counts from the last start; ``peak_memory_gib`` is that of the first device; ``final_loss`` is the last
    point of the loss curve.
    """

    steps: int
    resumed_from_step: int
    final_loss: float
    seconds: float
    peak_memory_gib: float


@dataclass(frozen=True)
class Cadence:
    """Steps from one point of the loss curve, checkpoint or evaluation on held-out rows to the next."""

    logging: int
    saving: int
    evaluation: int

    @classmethod
    def of(cls, config: RunConfig, steps: int) -> "Cadence":
        """As the settings say, but often enough that a short run has a curve and at least three checkpoints.

        Every checkpoint is also a point of the curve: a point averages the steps since the point before it, and a
        resumed process knows only the steps after its checkpoint.
        """
        saving = min(config.save_steps, max(1, steps // 4))
        curve = min(config.logging_steps, max(1, steps // 20), saving)
        return cls(curve, saving - saving % curve, min(config.eval_steps, max(1, steps // 4)))


def create_training_arguments(config: RunConfig, precision: Precision, steps: Steps, output_dir: Path) -> SFTConfig:
    """The trainer's arguments for our settings; no other code translates them."""
    cadence = Cadence.of(config, steps.total)
    return SFTConfig(
        output_dir=str(output_dir),
        seed=config.seed,
        data_seed=config.seed,
        max_steps=steps.total,
        train_sampling_strategy="sequential",  # the dataset holds all epochs, shuffled
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
        save_total_limit=None,  # SealCheckpoints deletes the oldest
        eval_strategy="steps",
        eval_steps=cadence.evaluation,
        max_length=None,  # max_seq_length was applied when rows were encoded; the trainer must never truncate one
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,  # every batch reaches every weight of the adapter, fillers too
        **checkpointing_arguments(enabled=config.gradient_checkpointing),
    )


def train_model(
    loaded: LoadedModel, data: TrainingData, config: RunConfig, run_dir: Path, halvings: int = 0
) -> TrainingSummary:
    """Train the adapter from the last complete checkpoint in ``run_dir``, or from the start.

    ``halvings``: how often the tokens per batch are halved, with the same rows in every step.

    Writes ``checkpoints/``, ``journal.jsonl`` and ``training.json``. A training that is killed at any time and started
    again ends with bit-identical weights (tested on a CPU in fp32; not yet on a GPU). When torch's launcher has started
    several processes, each trains on its own device, and the first one writes. Raises ``filelock.Timeout`` when another
    process trains in the same folder, ``DeviceHeldError`` when something else holds the GPU, and ``SettingsError`` when
    a step does not fit in memory, or a loss, gradient or weight is not finite.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    ranks, summary_file = PartialState(), run_dir / SUMMARY_FILE
    with (
        hold_gpu(f"the training in {run_dir}"),
        FileLock(run_dir / "training.lock", timeout=1) if ranks.is_main_process else nullcontext(),
    ):
        with ranks.main_process_first():  # it deletes incomplete checkpoints, which the others then do not find
            checkpoint = latest_complete_checkpoint(run_dir / "checkpoints")
        resumed_from = _steps_done(checkpoint)
        logger.info("Training starts from %s", f"checkpoint {resumed_from}" if checkpoint else "the beginning")
        config, batches = halved_batches(data, config, ranks.num_processes, halvings)
        started = time.monotonic()
        if checkpoint and resumed_from >= batches.steps.total:
            # The trainer compares with max_steps only after a step, so it would take one step too many.
            loaded.model.load_adapter(str(checkpoint), "default", is_trainable=True)
            if summary := _intact_summary(run_dir):
                return summary
        else:
            with explain_out_of_memory("a step", memory_fix(config)):
                _train(loaded, data.train, batches, config, run_dir, checkpoint)
        seconds = time.monotonic() - started
        summary = TrainingSummary(batches.steps.total, resumed_from, _final_loss(run_dir), seconds, peak_memory_gib())
        if ranks.is_main_process:
            with complete_file(summary_file) as draft:
                draft.write_text(json.dumps(asdict(summary), indent=2) + "\n", encoding="utf-8")
    return summary


def load_summary(run_dir: Path) -> TrainingSummary:
    """The summary that ``train_model`` wrote."""
    return TrainingSummary(**json.loads((run_dir / SUMMARY_FILE).read_text(encoding="utf-8")))


def _train(
    loaded: LoadedModel, rows: Dataset, batches: Batches, config: RunConfig, run_dir: Path, checkpoint: Path | None
) -> None:
    if config.sharding == "fsdp":
        shard_base(loaded.model)
    trainer = create_trainer(loaded, batches, config, run_dir)
    with trainer.accelerator.autocast():
        used = kernels(loaded.model, packing=config.packing)
    logger.info("Computed by: %s", "; ".join(f"{part}: {kernel}" for part, kernel in used.items()))
    share_left = 1 - _steps_done(checkpoint) / batches.steps.total
    require_memory(measure_heaviest_batch(trainer, batches, config, share_left), config)
    if config.sharding == "fsdp":
        average_gradients(trainer)
    trainer.add_callback(RequireFinite(trainer.model, rows, Path(loaded.model.get_base_model().name_or_path)))
    set_seed(config.seed + PartialState().process_index)  # each device draws its own dropout masks
    try:
        with save_when_interrupted() as interruption:
            trainer.add_callback(interruption)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        _remove_autocast(trainer)


def _remove_autocast(trainer: SFTTrainer) -> None:
    """Let the trained model compute as a loaded one does: accelerate leaves its ``forward`` in autocast."""
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    # Else accelerate takes it for wrapped already, and another training would compute without autocast.
    vars(model).pop("_is_accelerate_prepared", None)


def _intact_summary(run_dir: Path) -> TrainingSummary | None:
    """The summary of a finished training; ``None`` where there is none, or a damaged one."""
    try:
        return load_summary(run_dir)
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _steps_done(checkpoint: Path | None) -> int:
    return (checkpoint and step_of(checkpoint)) or 0


def _final_loss(run_dir: Path) -> float:
    return [point.values["loss"] for point in read_journal(run_dir / "journal.jsonl") if "loss" in point.values][-1]


def create_trainer(loaded: LoadedModel, batches: Batches, config: RunConfig, run_dir: Path) -> SFTTrainer:
    """The trainer of this process. Raises ``RuntimeError`` when the process sees more than one GPU."""
    ranks = PartialState()
    if torch.cuda.device_count() > ranks.num_processes == 1:
        # The trainer would wrap the model in DataParallel, which neither four bits nor shared prefixes support.
        raise RuntimeError(
            f"expected one GPU for one process, found {torch.cuda.device_count()}: "
            "use train_on_devices, or set CUDA_VISIBLE_DEVICES to one of them"
        )
    if config.packing:
        use_shared_prefix_attention(loaded.model)
    if batches.sharing_rows and config.lora_dropout:
        logger.info("Packing: rows that share a prefix share its dropout mask; lora_dropout 0 makes packing exact")
    if ranks.num_processes > 1 and batches.idle > NOTABLY_IDLE:
        idle, devices = f"{batches.idle:.0%}", ranks.num_processes
        logger.warning("%d devices idle for %s of the time: a step's rows are enough for fewer", devices, idle)
    trainer = SFTTrainer(
        model=loaded.model,
        processing_class=loaded.tokenizer,
        args=create_training_arguments(config, loaded.precision, batches.steps, run_dir / "checkpoints"),
        data_collator=collate_pack if config.packing else None,
        train_dataset=batches.train_order,
        eval_dataset=batches.held_out_order,
        callbacks=[
            SealCheckpoints(config.save_total_limit),
            *([KeepJournal(run_dir / "journal.jsonl", batches.tokens_per_step)] if ranks.is_main_process else []),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    # SFTTrainer casts the adapter of a quantised model to bf16, and a bf16 adapter does not resume exactly.
    for parameter in loaded.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer
