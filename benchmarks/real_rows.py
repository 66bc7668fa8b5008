"""A pretrained base on real rows, trained and judged by the product's own command: `python -m benchmarks.real_rows`.

    python -m samples.pretrained_base runs/pretrained_base
    python -m benchmarks.real_rows --train rows.jsonl --eval held_out.jsonl --rows 100 300 1000 --minutes 120

One training for each number of rows; each draw contains the smaller ones. All further flags are settings of the
product. The result is written after every training, and a benchmark that was killed goes on: what is finished is kept,
and the product resumes the rest from its last checkpoint.
"""

import argparse
import hashlib
import json
import logging
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.real_rows_page import RESULTS, RUNS, Cell, load, publish, save
from flows.cli import set_environment
from flows.doc_sections import ROOT
from training_core.config import config_from_command_line, read_settings, settings_info
from training_core.data_loader import load_jsonl
from training_core.dataset.evaluation_findings import accuracy_alone
from training_core.distributed import ADAPTER_FOLDER
from training_core.evaluation.comparison import load_scores
from training_core.evaluation.evidence import Evidence, load_evidence
from training_core.evaluation.paired_tests import compare_paired
from training_core.rows.reader import Row
from training_core.rows.strict_json import with_paths
from training_core.trainer import load_summary
from training_core.training.journal import Point, read_journal

logger = logging.getLogger("training_core.benchmarks.real_rows")

SETTINGS: dict[str, Any] = {
    "overlap": "drop",
    "learning_rate": 1e-3,
    "lora_dropout": 0.0,
    "gradient_checkpointing": False,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 8,
    "eval_batch_size": 64,
}
# A loss curve of held-out rows costs as much as the training where it is short. What is judged is judged at the end.
ROWS_OF_THE_CURVE = 8
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "trl")


@dataclass(frozen=True)
class Bench:
    """What every cell shares: files of rows, settings that differ from the product's defaults, and the results."""

    train: Path
    held_out: Path
    settings: dict[str, Any]
    output: Path
    work: Path
    most_rows: int


def main() -> None:
    """Train and judge every cell that is not in the results and for which there is time."""
    set_environment()
    arguments, settings = read_arguments(sys.argv[1:])
    rows = load_jsonl(arguments.train).rows
    settings = SETTINGS | {"model_name": arguments.base, "group_by": best_field(rows)} | settings
    places = arguments.output.resolve(), arguments.work.resolve()
    bench = Bench(arguments.train, arguments.eval, settings, *places, arguments.held_out_rows)
    read_settings(settings | {"dataset_path": str(arguments.train)})
    until = time.monotonic() + 60 * arguments.minutes
    for count in sorted(arguments.rows):
        run_cell(bench, rows, min(count, len(rows)), until)
        publish(bench.output)


def read_arguments(arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The benchmark's own flags, and the settings of the product."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_rows", description=__doc__, allow_abbrev=False)
    parser.add_argument("--train", type=Path, required=True, help="rows to draw from")
    parser.add_argument("--eval", type=Path, required=True, help="held-out rows")
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--held_out_rows", type=int, default=500, help="held-out rows to judge on, drawn once")
    parser.add_argument("--minutes", type=float, default=120.0, help="about how long all of it may take")
    parser.add_argument("--base", default=str(ROOT / "runs" / "pretrained_base"))
    parser.add_argument("--output", type=Path, default=RESULTS, help="results; the page shows those of the default")
    parser.add_argument("--work", type=Path, default=RUNS, help="folder where trainings are kept")
    found, rest = parser.parse_known_args(arguments)
    return found, config_from_command_line(rest, parser.prog)


def best_field(rows: Sequence[Row]) -> str:
    """The field of the case of which a lookup table decides most rows right: the hardest baseline of its kind."""
    counts: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for row in rows:
        for name, value in with_paths(row.record.get("input", {})):
            if name != "policy_document" and isinstance(value, str | bool | int):
                counts[name][str(value), row.record["output"]["decision"]] += 1
    right = {name: accuracy_alone(found) * found.total() for name, found in counts.items()}
    return max(right, key=lambda name: right[name], default=settings_info()["group_by"].default)


def run_cell(bench: Bench, rows: Sequence[Row], count: int, until: float) -> None:
    """Train on so many rows and judge, unless the results have it or too little time is left."""
    cells = load(bench.output)
    folder = bench.work / f"{bench.train.stem}-{count}-{digest_of(bench)[:8]}"
    if any(cell.folder == folder.name for cell in cells):
        return
    folder.mkdir(parents=True, exist_ok=True)
    settings = planned(bench, folder, cells, count, until - time.monotonic())
    if settings is None:
        logger.warning("%s: too little time is left for %d rows", bench.train.name, count)
        return
    (folder / "rows.jsonl").write_bytes(draw(rows, count))
    if not any(folder.glob(f"*/{ADAPTER_FOLDER}")):
        run_product(settings | {"max_eval_rows": ROWS_OF_THE_CURVE})
    seconds = run_product(settings | {"max_eval_rows": bench.most_rows})  # finds the adapter trained
    save([*cells, judged(bench, folder, count, settings, seconds)], bench.output)


def draw(rows: Sequence[Row], count: int) -> bytes:
    """So many rows as JSON lines; more rows contain the fewer."""
    return b"".join(rows[row].raw.strip() + b"\n" for row in np.random.default_rng(0).permutation(len(rows))[:count])


def digest_of(bench: Bench) -> str:
    """Tells cells of other files or settings apart."""
    parts = [*(path.read_bytes() for path in (bench.train, bench.held_out)), json.dumps(bench.settings).encode()]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def planned(bench: Bench, folder: Path, cells: Sequence[Cell], count: int, left: float) -> dict[str, Any] | None:
    """The settings of a cell, with as many steps as ``left`` seconds allow; ``None`` where that is not even one.

    They are kept in the folder: a killed training goes on with the settings it was started with, and only so resumes.
    """
    file = folder / "settings.json"
    if file.is_file():
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return kept
    paths = {"dataset_path": folder / "rows.jsonl", "eval_path": bench.held_out.resolve(), "output_dir": folder}
    settings = bench.settings | {name: str(path) for name, path in paths.items()}
    before = [cell for cell in cells if cell.folder.endswith(digest_of(bench)[:8])]
    if before:
        settings["max_steps"] = min(_wanted_steps(settings, count), _affordable_steps(before[-1], left))
    if left <= 0 or settings.get("max_steps") == 0:
        return None
    file.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    return settings


def _wanted_steps(settings: dict[str, Any], count: int) -> int:
    config = read_settings(settings)
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    return config.max_steps or max(1, round(count * config.num_train_epochs / per_step))


def _affordable_steps(before: Cell, left: float) -> int:
    """Judging takes as long as it took before, and so does a step."""
    return max(0, int((left - before.judging_seconds) * before.steps / before.training_seconds))


def run_product(settings: dict[str, Any]) -> float:
    """Train and evaluate by the product's command, or exit as it does; returns the seconds it took."""
    started = time.monotonic()
    flags = [part for name, value in settings.items() for part in (f"--{name}", _text(value))]
    ended = subprocess.run([sys.executable, ROOT / "train_qlora_sft.py", *flags], cwd=ROOT, check=False)
    if ended.returncode:  # it has said why
        sys.exit(ended.returncode)
    return time.monotonic() - started


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def judged(bench: Bench, folder: Path, count: int, settings: dict[str, Any], judging: float) -> Cell:
    """The cell of a finished training."""
    evaluation = max(folder.glob("*/evaluation"), key=lambda found: found.stat().st_mtime)
    summary = load_summary(evaluation.parent)
    return Cell(
        data=bench.train.stem,
        folder=folder.name,
        rows=count,
        settings={name: value for name, value in settings.items() if not str(value).startswith("/")}
        | {"model_name": Path(settings["model_name"]).name},
        scores={name: asdict(found) for name, found in load_scores(evaluation).items()},
        p=_p_values(load_evidence(evaluation)),
        steps=summary.steps,
        final_loss=summary.final_loss,
        peak_memory_gib=summary.peak_memory_gib,
        training_seconds=_seconds(read_journal(evaluation.parent / "journal.jsonl")),
        judging_seconds=judging,
        about={"date": str(date.today()), **{name: version(name) for name in PACKAGES}},
    )


def _seconds(points: Sequence[Point]) -> float:
    """The time of all steps, also of those before a kill."""
    timed = [(point.step, point.values["seconds_per_step"]) for point in points if "seconds_per_step" in point.values]
    return sum((step - before) * each for (before, _), (step, each) in pairwise([(0, 0.0), *timed]))


def _p_values(evidence: Evidence) -> dict[str, float]:
    right = {name: evidence.right(name) for name in evidence.models}
    candidate = right.pop("candidate")
    return {name: compare_paired(candidate, other, evidence.ties).p for name, other in right.items()}


if __name__ == "__main__":
    main()
