"""What the data stage costs beside other readers and beside TRL: rows per CPU second, and the most memory held.

`python -m benchmarks.data_stage [--rows 20000] [--repeats 3] [--only our_preparation]`. Each measurement is a process
of its own, in turn, on the same sample rows. *Reading* is from bytes to checked rows with their line numbers;
*preparing* is from the file to token ids on disk. Readers differ in what they notice: ours alone rejects keys that
stand twice, control characters and lost digits.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from samples.cases import write_rows

ANSWER = ("decision", "reason", "customer_response", "next_action")
BASE = Path(__file__).parent.parent / "samples" / "tiny_qwen"
MAX_LENGTH = 4_096

Work = Callable[[], int]


def json_by_line(path: Path, folder: Path) -> Work:
    return lambda: _read_by_line(path, json.loads, _check_by_hand)


def orjson_by_line(path: Path, folder: Path) -> Work:
    import orjson

    return lambda: _read_by_line(path, orjson.loads, _check_by_hand)


def msgspec_by_line(path: Path, folder: Path) -> Work:
    import msgspec

    answer = msgspec.defstruct("Answer", [(field, str) for field in ANSWER])
    row = msgspec.defstruct("Row", [("instruction", str), ("input", dict[str, Any]), ("output", answer)])
    return lambda: _read_by_line(path, msgspec.json.Decoder(row).decode, lambda row: None)


def pyarrow_without_line_numbers(path: Path, folder: Path) -> Work:
    import pyarrow.json

    return lambda: pyarrow.json.read_json(str(path)).num_rows


def our_reading(path: Path, folder: Path) -> Work:
    from training_core.rows.reader import Row, read_rows

    return lambda: sum(isinstance(item, Row) for item in read_rows(str(path)))


def trl_preparation(path: Path, folder: Path) -> Work:
    """Conversational prompt/completion rows as in TRL's documentation, tokenised by its trainer's constructor."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from training_core.prompts.messages import format_as_chat

    chats = [format_as_chat(json.loads(line)) for line in path.read_bytes().split(b"\n") if line]
    rows = Dataset.from_list([{"prompt": chat[:-1], "completion": chat[-1:]} for chat in chats])
    arguments = SFTConfig(output_dir=str(folder), max_length=MAX_LENGTH, report_to="none", bf16=False, use_cpu=True)
    tokenizer, model = AutoTokenizer.from_pretrained(BASE), AutoModelForCausalLM.from_pretrained(BASE)

    def prepare() -> int:
        trainer = SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
        trainer.train_dataset.save_to_disk(str(folder / "rows"))
        return len(trainer.train_dataset)

    return prepare


def our_preparation(path: Path, folder: Path) -> Work:
    from training_core.config import read_settings
    from training_core.data_loader import build_datasets
    from training_core.model_setup import load_tokenizer

    config = read_settings({"dataset_path": str(path), "max_seq_length": MAX_LENGTH})
    tokenizer = load_tokenizer(BASE)
    return lambda: build_datasets(config, tokenizer, folder).accounts[0].lines


READERS = (json_by_line, orjson_by_line, msgspec_by_line, pyarrow_without_line_numbers, our_reading)
PREPARATIONS = (trl_preparation, our_preparation)
MEASURED = {measured.__name__: measured for measured in (*READERS, *PREPARATIONS)}


def _read_by_line(path: Path, parse: Callable[[bytes], Any], check: Callable[[Any], None]) -> int:
    rows = 0
    with path.open("rb") as file:
        for rows, line in enumerate(file, start=1):
            try:
                check(parse(line))
            except ValueError as error:
                raise ValueError(f"line {rows}: {error}") from error
    return rows


def _check_by_hand(row: Any) -> None:
    texts = [row["instruction"], row["input"]["policy_document"], *(row["output"][field] for field in ANSWER)]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError("a field is no text")


def measure_here(name: str, path: Path) -> dict[str, float]:
    """Run one measured in this process; loading libraries, tokenizer and model is not counted."""
    with tempfile.TemporaryDirectory() as folder:
        work = MEASURED[name](path, Path(folder))
        before = peak_rss_mib()
        cpu, wall = time.process_time(), time.perf_counter()
        rows = work()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"rows": rows, "cpu": cpu, "wall": wall, "rss": peak_rss_mib(), "rss_before": before}


def peak_rss_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measure(name: str, path: Path) -> dict[str, float] | None:
    """The same in a process of its own; ``None`` when it has not got the library."""
    command = [sys.executable, "-m", "benchmarks.data_stage", "--here", name, str(path)]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    found = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if "ModuleNotFoundError" in found.stderr:
        return None
    if found.returncode:
        raise RuntimeError(f"{name} failed:\n{found.stderr}")
    return dict(json.loads(found.stdout.splitlines()[-1]))


def show(results: dict[str, dict[str, float]], size_mib: float) -> None:
    table = Table(title="Rows per second")
    for head in (
        "",
        "rows",
        "per CPU s",
        "per wall s",
        "MiB per CPU s",
        "against ours",
        "peak RSS MiB",
        "of it before",
    ):
        table.add_column(head, justify="left" if not head else "right")
    for group, ours in ((READERS, our_reading), (PREPARATIONS, our_preparation)):
        for name in (measured.__name__ for measured in group if measured.__name__ in results):
            cost = results[name]
            speed, own = cost["rows"] / cost["cpu"], results.get(ours.__name__)
            against_ours = f"{speed * own['cpu'] / own['rows']:.2f}" if own else ""
            figures = (f"{cost['rows']:,.0f}", f"{speed:,.0f}", f"{cost['rows'] / cost['wall']:,.0f}")
            memory = (f"{cost['rss']:,.0f}", f"{cost['rss_before']:,.0f}")
            table.add_row(name, *figures, f"{size_mib / cost['cpu']:,.1f}", against_ours, *memory)
        table.add_section()
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=MEASURED, default=list(MEASURED))
    parser.add_argument("--here", nargs=2, metavar=("NAME", "FILE"), help="one measurement in this process")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/data_stage.json"))
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(measure_here(arguments.here[0], Path(arguments.here[1]))))  # noqa: T201  read by `measure`
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(path, arguments.rows, seed=3, bad_share=0)
        turns = [(name, measure(name, path)) for _ in range(arguments.repeats) for name in arguments.only]
        size = path.stat().st_size / 2**20
    runs = {name: [costs for who, costs in turns if who == name and costs] for name in arguments.only}
    results = {
        name: {key: median(costs[key] for costs in found) for key in found[0]} for name, found in runs.items() if found
    }
    show(results, size)
    about = {"date": str(date.today()), "cores": os.cpu_count(), "rows": arguments.rows, "mib": size}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({"about": about, "results": results, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
