"""What shared-policy packing saves: forward and backward of the same rows in four layouts, interleaved.

`OMP_WAIT_POLICY=passive python -m benchmarks.packing` (minutes; `--quick`: seconds). The unit is *real row
tokens*: every row counts in full, however often its policy is computed. A layout that shares nothing costs
the same for every row, so it is measured on a few rows; sharing is measured on whole policies.
"""

import argparse
import ctypes
import json
import os
import re
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import median

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from trl import SFTConfig, SFTTrainer

from training_core.packing import collate_pack, packed_dataset, plan_packing
from training_core.prefix_attention import use_shared_prefix_attention

VOCABULARY = 8_192
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 8_192,
}
ARCHITECTURES = {"qwen2": (Qwen2ForCausalLM, Qwen2Config), "qwen3": (Qwen3ForCausalLM, Qwen3Config)}
TRL_LAYOUTS = ("TRL, right padding", "TRL, padding-free")
CASE_TOKENS, ANSWER_TOKENS = 80, 40
ENVIRONMENT = ("OMP_WAIT_POLICY", "GLIBC_TUNABLES")  # both weigh on CPU training: reported with the results


@dataclass(frozen=True)
class Cost:
    """One pass over a case's rows."""

    row_tokens: int
    computed_tokens: int
    cpu_seconds: float
    wall_seconds: float
    peak_rss_mb: float
    loss: float


def make_rows(policy_tokens: int, rows_per_policy: int, rows: int) -> Dataset:
    """Rows of random tokens: policy, case and answer; the length of a case varies by half."""
    random = np.random.default_rng(0)

    def text(tokens: float) -> list[int]:
        return random.integers(2, VOCABULARY, int(tokens)).tolist()

    policies = [text(policy_tokens) for _ in range(0, rows, rows_per_policy)]
    made = []
    for policy in (policies[row // rows_per_policy] for row in range(rows)):
        prompt, answer = policy + text(CASE_TOKENS * random.uniform(0.5, 1.5)), text(ANSWER_TOKENS)
        made.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return Dataset.from_list(made)


def load_model(architecture: str, folder: Path) -> PeftModel:
    """About ten million random parameters, NF4 with fp32 compute, LoRA on every projection."""
    torch.manual_seed(0)
    model_class, config_class = ARCHITECTURES[architecture]
    model_class(config_class(**SIZES)).save_pretrained(folder)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = AutoModelForCausalLM.from_pretrained(folder, quantization_config=nf4, dtype=torch.float32)
    return get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))


def make_trainer(layout: str, model: PeftModel, rows: Dataset, rows_per_policy: int) -> SFTTrainer:
    """TRL's trainer with all rows in one batch: in its own layouts, or in one of our packs."""
    packed = layout not in TRL_LAYOUTS
    batch_size = 1 if packed else len(rows)
    if packed:
        budget = sum(map(len, rows["input_ids"]))
        rows = packed_dataset(rows, plan_packing(rows, budget, len(rows), 0, rows_per_prefix=rows_per_policy))
    words = {str(token): token for token in range(VOCABULARY)}
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(Path(tempfile.gettempdir()) / "packing-benchmark"),
            per_device_train_batch_size=batch_size,
            padding_free=layout == TRL_LAYOUTS[1],
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            remove_unused_columns=False,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
        ),
        train_dataset=rows,
        data_collator=collate_pack if packed else None,
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel(words, unk_token="0")), pad_token="0", eos_token="1"
        ),
    )
    for weight in model.parameters():  # the trainer casts LoRA weights to bf16, which this CPU would emulate
        if weight.requires_grad:
            weight.data = weight.data.float()
    return trainer


def reset_peak_memory() -> None:
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float:
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def measure(trainer: SFTTrainer, row_tokens: int) -> Cost:
    """Forward and backward of the one batch; the optimiser's share is the same in every layout."""
    (batch,) = trainer.get_train_dataloader()
    labels = (batch["labels"] != -100).sum()
    trainer.model.train()
    reset_peak_memory()
    cpu, wall = time.process_time(), time.perf_counter()
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=labels)
    loss.backward()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    trainer.model.zero_grad()
    return Cost(row_tokens, batch["input_ids"].numel(), cpu, wall, peak_memory_mb(), loss.item())


def run_policy_length(models: dict[str, PeftModel], policy_tokens: int, shares: list[int], repeats: int) -> list[dict]:
    """Each layout once per repeat, in turn, so that a busy machine is busy for all of them."""
    few = 2 if policy_tokens > 1_000 else 4
    plain = make_rows(policy_tokens, 1, few)
    cases = [(layout, plain, 1) for layout in (*TRL_LAYOUTS, "ours, nothing shared")]
    for share in shares:
        cases.append((f"ours, {share} rows per policy", make_rows(policy_tokens, share, max(share, few)), share))
    trainers = []
    for layout, rows, share in cases:
        trainers.append(make_trainer(layout, models[layout.split(",")[0]], rows, share))
    tokens = [sum(map(len, rows["input_ids"])) for _, rows, _ in cases]
    costs = [[measure(*pair) for pair in zip(trainers, tokens, strict=True)] for _ in range(repeats)]
    losses = [cost.loss for cost in costs[0][: len(TRL_LAYOUTS) + 1]]
    if max(losses) - min(losses) > 1e-4:
        raise RuntimeError(f"the layouts disagree on the loss of the same rows: {losses}")
    runs = zip(cases, zip(*costs, strict=True), strict=True)
    return [{"policy_tokens": policy_tokens, "layout": case[0]} | summarise(costs) for case, costs in runs]


def summarise(costs: tuple[Cost, ...]) -> dict[str, float]:
    middle = {name: median(asdict(cost)[name] for cost in costs) for name in asdict(costs[0])}
    return middle | {
        "tokens_per_cpu_second": middle["row_tokens"] / middle["cpu_seconds"],
        "tokens_per_second": middle["row_tokens"] / middle["wall_seconds"],
        "slowest_over_fastest": max(c.cpu_seconds for c in costs) / min(c.cpu_seconds for c in costs),
    }


def show(results: list[dict], console: Console) -> None:
    table = Table(title="Real row tokens per second, forward and backward")
    for heading in ("policy", "layout", "per CPU s", "per wall s", "vs padded", "vs unshared", "peak MB"):
        table.add_column(heading, justify="left" if heading == "layout" else "right", no_wrap=True)
    for cell in results:
        group = [other for other in results if other["policy_tokens"] == cell["policy_tokens"]]
        speed = cell["tokens_per_cpu_second"]
        table.add_row(
            f"{cell['policy_tokens']:,}",
            cell["layout"],
            f"{speed:,.0f}",
            f"{cell['tokens_per_second']:,.0f}",
            *(f"{speed / group[rival]['tokens_per_cpu_second']:.1f}x" for rival in (0, len(TRL_LAYOUTS))),
            f"{cell['peak_rss_mb']:,.0f}",
            end_section=cell is group[-1],
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short policies, one repeat")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="qwen3")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/packing.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    policies, shares, repeats = ((250,), [8], 1) if arguments.quick else ((500, 3_000), [1, 2, 8, 32], 3)
    with tempfile.TemporaryDirectory() as folder:
        models = {name: load_model(arguments.architecture, Path(folder)) for name in ("TRL", "ours")}
    use_shared_prefix_attention(models["ours"])
    results = []
    for policy_tokens in policies:
        results += run_policy_length(models, policy_tokens, shares, repeats)
        show(results, Console(width=100))
    environment = {name: os.environ.get(name) for name in ENVIRONMENT}
    about = {"date": str(date.today()), "cpus": os.cpu_count(), "environment": environment} | vars(arguments)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({"about": about, "results": results}, indent=2, default=str))


if __name__ == "__main__":
    main()
