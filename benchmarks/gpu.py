"""The same comparison on a GPU, with Qwen2.5's architectures and random weights: `python -m benchmarks.gpu`.

Needs torch, transformers, peft, bitsandbytes, trl, datasets, pydantic, pyyaml, orjson, pandas, pyarrow, fsspec, scipy,
scikit-learn, filelock, jinja2, rich and matplotlib, but neither Prefect nor MLflow. `--tiny` runs a tiny model, also on
a CPU.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.compare import Plan, check_losses, compare
from benchmarks.measurements import Measurements
from benchmarks.report import RUNS
from benchmarks.rows import Architecture, RowSet

RESULTS = Path(__file__).parent / "results" / "gpu.json"
QWEN25 = {"model_type": "qwen2", "num_hidden_layers": 28, "max_position_embeddings": 32_768}
ARCHITECTURES: dict[str, Architecture] = {
    "1.5B": QWEN25
    | {
        "vocab_size": 151_936,
        "hidden_size": 1_536,
        "intermediate_size": 8_960,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "7B": QWEN25
    | {
        "vocab_size": 152_064,
        "hidden_size": 3_584,
        "intermediate_size": 18_944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "tiny": QWEN25
    | {
        "num_hidden_layers": 2,
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
FULL = Plan(
    all_layouts=(RowSet(800, 8, 2), RowSet(3_000, 2, 2)),
    only_sharing=(RowSet(3_000, 32, 2),),
    repeats=1,
    starts=0,
    steps=4,
    gradient_checkpointing=True,
)
TINY = Plan(all_layouts=(RowSet(64, 4, 2),), only_sharing=(), repeats=1, starts=0)
H100_TFLOPS = 989.0  # dense bf16, by its data sheet; the H200 has the same


def block_weights(architecture: Architecture) -> int:
    """Weights of all linear layers but the head."""
    hidden = architecture["hidden_size"]
    share = architecture["num_key_value_heads"] / architecture["num_attention_heads"]
    layer = 2 * hidden**2 * (1 + share) + 3 * hidden * architecture["intermediate_size"]
    return round(architecture["num_hidden_layers"] * layer)


def utilisation(run: dict[str, Any], architecture: Architecture, peak_tflops: float) -> float:
    """Model FLOPs utilisation (MFU): the arithmetic of the computed tokens over what the GPU can do in that time.

    Two operations a weight forward, two backward (frozen weights need no gradient); attention, adapter, head and
    recomputed activations are not counted.
    """
    operations = 4 * block_weights(architecture) * run["computed_tokens"]
    return operations / run["wall_seconds"] / (peak_tflops * 1e12)


def show(results: Measurements, architecture: Architecture, peak_tflops: float) -> Table:
    table = Table("policy", "rows per policy", "layout", "tokens before sharing/s", "MFU", "peak MB")
    for run in results.runs:
        table.add_row(
            f"{run['rows']['policy_tokens']:,}",
            str(run["rows"]["rows_per_policy"]),
            run["layout"],
            f"{run['row_tokens'] / run['wall_seconds']:,.0f}",
            f"{utilisation(run, architecture, peak_tflops):.1%}",
            f"{run['peak_memory_mb']:,.0f}",
        )
    return table


def main() -> None:
    """Measure one architecture after the other."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=("1.5B", "7B"), default=["1.5B", "7B"])
    parser.add_argument("--tiny", action="store_true", help="a tiny model and few rows, on a CPU too")
    parser.add_argument("--peak_tflops", type=float, default=H100_TFLOPS, help="of the GPU, dense, in bf16")
    parser.add_argument("--output", type=Path, help="where the results are written")
    arguments = parser.parse_args()
    if not (arguments.tiny or torch.cuda.is_available()):
        parser.error("expected a GPU, found none; --tiny runs on a CPU")
    output = arguments.output or (RUNS / "gpu_tiny.json" if arguments.tiny else RESULTS)
    console = Console()
    found = {}
    for name in ["tiny"] if arguments.tiny else arguments.models:
        results = compare(TINY if arguments.tiny else FULL, ARCHITECTURES[name], console)
        console.print(show(results, ARCHITECTURES[name], arguments.peak_tflops))
        found[name] = asdict(results)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        check_losses(results)


if __name__ == "__main__":
    main()
