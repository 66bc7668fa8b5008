"""Levers on a training step that were weighed one by one: what each costs or saves beside the step as it is.

`OMP_WAIT_POLICY=PASSIVE python -m benchmarks.levers` (minutes). All variants take the same pack of sample rows in
turn, so that a busy machine is busy for all of them; medians of CPU and wall seconds.
"""

import ctypes
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from rich.table import Table
from torch.nn.functional import cross_entropy
from transformers import Qwen2Config, Qwen2ForCausalLM
from trl.trainer.utils import add_fused_lm_head

from samples.cases import write_rows
from training_core.config import read_settings
from training_core.data_loader import prepare_data
from training_core.dataset.store import load_training_data
from training_core.model_setup import default_qwen_target_modules, load_quantised_base, load_tokenizer
from training_core.packing.attention import use_shared_prefix_attention
from training_core.packing.plan import collate_pack, packed_dataset, plan_packing
from training_core.utils import Precision

BASE = Path("samples/tiny_qwen")
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
QWEN_VOCABULARY = 151_936
REPEATS = 3


def load(folder: Path, precision: Precision, *, checkpointing: bool = False) -> PeftModel:
    """About ten million random parameters in NF4, and an adapter in fp32."""
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=default_qwen_target_modules())
    model = get_peft_model(load_quantised_base(folder, precision), lora)
    if checkpointing:
        model.enable_input_require_grads()
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    for weight in model.parameters():
        weight.data = weight.data.float() if weight.requires_grad else weight.data
    use_shared_prefix_attention(model)
    return model.train()


def take_step(model: PeftModel, pack: dict[str, Any], *, fused: bool = True, threads: int = 2) -> None:
    torch.set_num_threads(threads)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4, fused=fused)
    logits = model(**pack, use_cache=False).logits[0]
    cross_entropy(logits.float(), pack["shift_labels"][0]).backward()
    optimiser.step()
    optimiser.zero_grad()


def take_loss(model: Qwen2ForCausalLM, inputs: dict[str, Any], *, chunked: bool) -> None:
    """The loss at a vocabulary of Qwen's size, where logits outweigh all else."""
    if chunked:
        model(**inputs, fused_lm_head=True).loss.backward()
    else:
        logits = model(input_ids=inputs["input_ids"], use_cache=False).logits[0, :-1]
        cross_entropy(logits, inputs["labels"][0, 1:]).backward()
    model.zero_grad()


def cost_of(call: Callable[[], object]) -> tuple[float, float, float]:
    """CPU seconds, wall seconds, and the memory in MB that a call adds at its peak."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before, cpu, wall = memory("VmRSS"), time.process_time(), time.perf_counter()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall, memory("VmHWM") - before


def memory(kind: str) -> float:
    (kilobytes,) = re.findall(rf"{kind}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(kilobytes) / 1024


def compare(title: str, variants: Mapping[str, Callable[[], object]], console: Console) -> None:
    """One table; the first variant is the step as it is."""
    runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in variants}
    for _ in range(REPEATS + 1):
        for name, call in variants.items():
            runs[name].append(cost_of(call))
    middle = {name: [median(values) for values in zip(*found[1:], strict=True)] for name, found in runs.items()}
    table = Table(title=title)
    for heading in ("variant", "CPU s", "wall s", "CPU, times as it is", "MB above rest"):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    first = next(iter(middle.values()))
    for name, (cpu, wall, above) in middle.items():
        table.add_row(name, f"{cpu:.3f}", f"{wall:.3f}", f"{cpu / first[0]:.2f}", f"{above:,.0f}")
    console.print(table)


def weigh_steps(folder: Path, console: Console) -> None:
    tokenizer = load_tokenizer(BASE)
    tokenizer.save_pretrained(folder)
    Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), **SIZES)).save_pretrained(folder)
    write_rows(folder / "rows.jsonl", count=200, seed=7, bad_share=0.0)
    config = read_settings({"dataset_path": str(folder / "rows.jsonl"), "output_dir": str(folder)})
    rows = load_training_data(prepare_data(config, folder)).train.select_columns(["input_ids", "labels"])
    packs = packed_dataset(rows, plan_packing(rows, 2 * 2048, 32, 0))
    pack = collate_pack([packs[0]])
    fp32, bf16 = Precision("fp32", ""), Precision("bf16", "")
    model, in_bf16, thrifty = load(folder, fp32), load(folder, bf16), load(folder, fp32, checkpointing=True)
    variants: dict[str, Callable[[], object]] = {
        "as it is: fp32, 2 threads, fused AdamW": partial(take_step, model, pack),
        "1 thread": partial(take_step, model, pack, threads=1),
        "AdamW not fused": partial(take_step, model, pack, fused=False),
        "bf16": partial(take_step, in_bf16, pack),
        "gradient checkpointing": partial(take_step, thrifty, pack),
        "laying out the pack, alone": lambda: collate_pack([packs[0]]),
    }
    compare(f"A step of one pack, {pack['input_ids'].shape[1]:,} tokens", variants, console)


def weigh_loss(console: Console) -> None:
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=QWEN_VOCABULARY, **(SIZES | {"num_hidden_layers": 1})))
    model.lm_head.requires_grad_(False)
    model.model.embed_tokens.requires_grad_(False)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))  # as the trainer calls it
    tokens = torch.randint(QWEN_VOCABULARY, (1, 800))
    inputs = {"input_ids": tokens, "labels": tokens}
    variants = {
        "as it is: the trainer's loss in chunks": partial(take_loss, model, inputs, chunked=True),
        "all logits at once": partial(take_loss, model, inputs, chunked=False),
    }
    compare("The loss of 800 labels in a vocabulary of 151,936", variants, console)


def main() -> None:
    console = Console(width=110)
    torch.manual_seed(0)
    console.print(f"{date.today()}, {torch.get_num_threads()} threads")
    weigh_loss(console)
    with tempfile.TemporaryDirectory() as folder:
        weigh_steps(Path(folder), console)


if __name__ == "__main__":
    main()
