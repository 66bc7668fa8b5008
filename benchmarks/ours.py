"""Our training with the parts of `train_model`, without its evaluations and checkpoints."""

import numpy as np
from peft import PeftModel
from transformers.trainer_callback import PrinterCallback
from trl import SFTTrainer

from benchmarks.rows import ANSWER_TOKENS, CASE_TOKENS
from benchmarks.training import LEARNING_RATE, LORA_ALPHA, LORA_DROPOUT, LORA_R, SEED, Job
from training_core.config import read_settings
from training_core.model_setup import load_model_and_tokenizer
from training_core.packing.attention import use_shared_prefix_attention
from training_core.packing.batches import Steps, order_of_steps, packed
from training_core.packing.division import divide
from training_core.packing.plan import collate_pack, plan_packing
from training_core.trainer import create_training_arguments
from training_core.training.callbacks import KeepJournal


def sharing(job: Job) -> tuple[PeftModel, int]:
    """The default: the rows of a policy under one copy of it."""
    return _train(job, job.rows.rows_per_policy)


def not_sharing(job: Job) -> tuple[PeftModel, int]:
    """The same packs, but every row has its own copy of the policy."""
    return _train(job, 1)


def _train(job: Job, rows_per_prefix: int) -> tuple[PeftModel, int]:
    config = read_settings(
        {
            "model_name": str(job.base),
            "seed": SEED,
            "max_steps": job.steps,
            "lora_r": LORA_R,
            "lora_alpha": LORA_ALPHA,
            "lora_dropout": LORA_DROPOUT,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant",
            "warmup_ratio": 0,
            "gradient_checkpointing": job.gradient_checkpointing,
        }
    )
    loaded = load_model_and_tokenizer(config)
    use_shared_prefix_attention(loaded.model)
    rows = job.rows.make(job.vocabulary)
    # The longest pack: one policy with all of its rows.
    room = job.rows.policy_tokens + job.rows.rows_per_policy * (CASE_TOKENS[1] + ANSWER_TOKENS)
    plan = plan_packing(rows, room, len(rows), config.seed, rows_per_prefix)
    examples = packed(rows, plan, divide(plan, devices=1))
    steps = Steps.of(config, len(plan.packs), 1, plan.packs_per_step, parts=examples.units[0].size)
    arguments = create_training_arguments(config, loaded.precision, steps, job.run_dir)
    arguments.save_strategy = arguments.eval_strategy = "no"
    trainer = SFTTrainer(
        model=loaded.model,
        processing_class=loaded.tokenizer,
        args=arguments,
        data_collator=collate_pack,
        train_dataset=examples.content.select(np.concatenate(order_of_steps(examples, steps, config.seed))),
        callbacks=[KeepJournal(job.run_dir / "journal.jsonl", tokens_per_step=plan.row_tokens)],
    )
    trainer.remove_callback(PrinterCallback)
    for weight in loaded.model.parameters():  # as train_model does: TRL's trainer has rounded the adapter to bf16
        if weight.requires_grad:
            weight.data = weight.data.float()
    trainer.train()
    return loaded.model, plan.computed_tokens
