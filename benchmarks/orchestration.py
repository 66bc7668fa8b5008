"""What comes before the first optimiser step, and what Prefect and MLflow add to a run.

`python -m benchmarks.orchestration [--repeats N] [--quick]`: the demo's rows on the demo's base. First ours and TRL's
programs up to the first step, then the flow against the plain script on the same work, in turn, with fresh folders.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.first_step import ANNOUNCEMENT
from benchmarks.processes import Watched, watch
from flows.cli import DEMO_BAD_SHARE, DEMO_CONFIG, DEMO_ROWS, DEMO_SEED, ENVIRONMENT, ROOT
from samples.cases import write_rows
from training_core.config import RunConfig
from training_core.data_loader import load_jsonl
from training_core.prompts.messages import format_as_chat

BASE = str(ROOT / "samples" / "tiny_qwen")
QUICK = ["--max_steps", "2", "--max_eval_rows", "16", "--eval_max_new_tokens", "8"]
TRL_BAR = r"^\s*0%\|.*\b0/\d+ \[[^,]*, \?it/s\]"  # its bar of training steps; those of row preparation say examples/s
FLOW = "from flows.cli import main; main()"
PROCESSES = {"prefect.server.api.server": "Prefect server", "tasks.check_served": "registry check"}
RESULTS = Path("runs/benchmarks/orchestration.json")

Program = Callable[[Path], Watched]


def main() -> None:
    """Run everything in turn, print the medians, write every measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two steps and sixteen answers instead of the whole demo")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        programs = make_programs(Path(folder), QUICK if arguments.quick else [])
        measured: dict[str, list[Watched]] = {name: [] for name in programs}
        for repeat in range(arguments.repeats):
            for name, program in programs.items():
                measured[name].append(program(Path(folder) / f"{name} {repeat}".replace(" ", "_")))
    show(measured)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    found = {name: [asdict(watched) for watched in runs] for name, runs in measured.items()}
    RESULTS.write_text(json.dumps({"date": str(date.today()), "quick": arguments.quick, "runs": found}, indent=1))


def make_programs(folder: Path, settings: list[str]) -> dict[str, Program]:
    """Each program as a function of the empty folder it may write to; TRL reads the same rows as conversations."""
    rows, conversations = folder / "samples.jsonl", folder / "trl" / "train.jsonl"
    write_rows(rows, DEMO_ROWS, DEMO_SEED, DEMO_BAD_SHARE)
    write_conversations(rows, conversations)
    ours = ["--config", str(DEMO_CONFIG), "--model_name", BASE, "--dataset_path", str(rows), *settings]
    trl = trl_arguments(conversations.parent)
    first_step = [sys.executable, "-m", "benchmarks.first_step"]

    def program(command: list[str], until: str | None = None) -> Program:
        # A cache of its own: TRL would find the rows it has prepared before.
        return lambda output: watch(
            [*command, "--output_dir", str(output)],
            ENVIRONMENT | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": f"{output}.cache"},
            until,
        )

    return {
        "first step, ours": program([*first_step, "train_qlora_sft.py", *ours], ANNOUNCEMENT),
        "first step, TRL's script": program([*first_step, "trl.scripts.sft", *trl], ANNOUNCEMENT),
        "first step, trl sft": program([str(Path(sys.executable).parent / "trl"), "sft", *trl], TRL_BAR),
        "script": program([sys.executable, "train_qlora_sft.py", *ours]),
        "flow": program([sys.executable, "-c", FLOW, "run", *ours]),
    }


def write_conversations(rows: Path, target: Path) -> None:
    """The usable rows in TRL's form of prompt and completion."""
    chats = [format_as_chat(row.record) for row in load_jsonl(rows).rows]
    target.parent.mkdir()
    lines = [json.dumps({"prompt": chat[:-1], "completion": chat[-1:]}) + "\n" for chat in chats]
    target.write_text("".join(lines), encoding="utf-8")


def trl_arguments(rows: Path) -> list[str]:
    """The demo's settings under TRL's names."""
    config = RunConfig.load(DEMO_CONFIG)
    settings = {
        "model_name_or_path": BASE,
        "dataset_name": str(rows),
        "lora_r": config.lora_r,
        "lora_alpha": config.lora_alpha,
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "learning_rate": config.learning_rate,
        "max_length": config.max_seq_length,
        "report_to": "none",
        "bf16": False,
    }
    pairs = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    return [*pairs, "--use_peft", "--load_in_4bit", "--use_bnb_nested_quant", "--use_cpu"]


def show(measured: dict[str, list[Watched]]) -> None:
    """Medians of the totals, then where the flow's go: by process, and from task to task in its own."""
    totals = Table("program", "CPU s", "wall s", title="Start to first step, and whole runs")
    for name, runs in measured.items():
        totals.add_row(name, *_middle([(watched.cpu, watched.wall) for watched in runs]))
    parts = Table("of the flow", "CPU s", "wall s", title="Where the flow's CPU-seconds go")
    for module, name in PROCESSES.items():
        parts.add_row(name, f"{median(_cost_of(watched, module) for watched in measured['flow']):.1f}", "")
    stages = [_stages(watched) for watched in measured["flow"]]
    for name in stages[0]:
        parts.add_row(name, *_middle([stage[name] for stage in stages]))
    console = Console()
    console.print(totals, parts)


def _middle(costs: list[tuple[float, float]]) -> list[str]:
    return [f"{median(values):.1f}" for values in zip(*costs, strict=True)]


def _cost_of(watched: Watched, module: str) -> float:
    return sum(cpu for command, cpu in watched.cpu_of_children.items() if module in command)


def _stages(watched: Watched) -> dict[str, tuple[float, float]]:
    """CPU-seconds of the flow's own process and seconds, each from the stage before to the end of this one."""
    stages, cpu, wall = {}, 0.0, 0.0
    for mark in watched.marks:
        name = _stage_ending(mark.line)
        if name:
            stages[name] = (mark.cpu - cpu, mark.wall - wall)
            cpu, wall = mark.cpu, mark.wall
    own = watched.cpu - sum(watched.cpu_of_children.values())
    return stages | {"tables, servers end": (own - cpu, watched.wall - wall)}


def _stage_ending(line: str) -> str | None:
    if "Beginning flow run" in line:
        return "imports, server starts"
    if "Task run '" in line and "Finished in state" in line:
        return line.split("Task run '")[1].split("'")[0].rpartition("-")[0]
    return None


if __name__ == "__main__":
    main()
