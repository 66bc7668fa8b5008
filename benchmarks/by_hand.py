"""The least that a training on separate rows has to do, as a plain loop."""

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from benchmarks.training import LEARNING_RATE, SEED, Job, lora, row_loss


def train(job: Job) -> tuple[PeftModel, int]:
    """Every row on its own, without padding; forward, backward, clip, step."""
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    torch.manual_seed(SEED)
    model = get_peft_model(load_nf4(job, dtype), lora())
    if job.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in weights:  # TRL's trainer rounds a quantised model's adapter; start from the same weights
        weight.data = weight.data.bfloat16().float()
    optimiser = torch.optim.AdamW(weights, LEARNING_RATE, weight_decay=0, fused=True)
    rows = list(job.rows.make(job.vocabulary).with_format("torch", device=model.device))
    for _ in range(job.steps):
        for row in rows:  # answers are equally long, so the mean over rows is the mean over labels
            with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
                loss = row_loss(model, row["input_ids"], row["labels"]) / len(rows)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        optimiser.zero_grad()
    return model, sum(len(row["input_ids"]) for row in rows)


def load_nf4(job: Job, dtype: torch.dtype) -> PreTrainedModel:
    """The base in NF4 with double quantisation, computing in `dtype`."""
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=True,
    )
    return AutoModelForCausalLM.from_pretrained(job.base, quantization_config=nf4, dtype=dtype, device_map="auto")
