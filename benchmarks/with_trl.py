"""TRL's SFTTrainer with the settings of its documentation, and with the fastest settings that we found."""

from typing import Any

import torch
from peft import PeftModel
from transformers import PrinterCallback, set_seed
from trl import SFTConfig, SFTTrainer

from benchmarks.by_hand import load_nf4
from benchmarks.training import LEARNING_RATE, SEED, Job, lora

DOCUMENTED_BATCH = 8  # the default of per_device_train_batch_size


def as_documented(job: Job) -> tuple[PeftModel, int]:
    """TRL's guide to QLoRA and TRL's defaults: bf16, gradient checkpointing, padded batches of eight.

    The same for all layouts: learning rate, LoRA without dropout, labels on answers alone, and no row is cut
    (TRL's default `max_length` would cut rows at 1,024 tokens). Source: docs/source/peft_integration.md of TRL, "Using
    QLoRA with TRL".
    """
    trainer = _trainer(job, torch.bfloat16, min(DOCUMENTED_BATCH, job.rows.policies * job.rows.rows_per_policy))
    return _train(trainer)


def at_its_best(job: Job) -> tuple[PeftModel, int]:
    """The fastest settings of those tried: fp32 without a GPU, no recomputation, one row at a time (no padding)."""
    if torch.cuda.is_available():
        return _train(_trainer(job, torch.bfloat16, 1, gradient_checkpointing=job.gradient_checkpointing))
    trainer = _trainer(job, torch.float32, 1, gradient_checkpointing=job.gradient_checkpointing, bf16=False)
    for weight in trainer.model.parameters():  # TRL's trainer rounds the adapter of a quantised model to bf16
        if weight.requires_grad:
            weight.data = weight.data.float()
    return _train(trainer)


def _trainer(job: Job, dtype: torch.dtype, batch_size: int, **settings: Any) -> SFTTrainer:
    rows = job.rows.make(job.vocabulary)
    set_seed(SEED)
    trainer = SFTTrainer(
        model=load_nf4(job, dtype),
        args=SFTConfig(
            output_dir=str(job.run_dir),
            seed=SEED,
            max_steps=job.steps,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=len(rows) // batch_size,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            **settings,
        ),
        train_dataset=rows,
        peft_config=lora(),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _train(trainer: SFTTrainer) -> tuple[PeftModel, int]:
    trainer.train()
    return trainer.model, sum(map(len, trainer.train_dataset["input_ids"]))
