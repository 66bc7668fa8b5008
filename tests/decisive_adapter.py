"""A small adapter that decides otherwise than its base, in few words, trained in seconds; and its held-out rows."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from tasks.artifact_store import publish
from tasks.refs import DatasetRef, EvalReport, RunRef, TrainedRef
from tasks.registry import find_or_create_version
from tasks.tracking import open_tracking_run
from tasks.versions import CHAMPION, point_alias
from training_core.config import RunConfig
from training_core.data_loader import prepare_data
from training_core.dataset.store import load_training_data
from training_core.distributed import ADAPTER_FOLDER, train_adapter
from training_core.model_setup import digest_base_model
from training_core.training.fingerprint import digest_rows, run_fingerprint

BASE = Path(__file__).parents[1] / "samples" / "tiny_qwen"
POLICY = "## Returns\n\nA return is free within 20 days. After that it is not possible."
LIMIT = 48


@dataclass(frozen=True)
class Decisive:
    """The settings of the training, its run folder, and files of rows."""

    config: RunConfig
    run_dir: Path
    held_out: Path

    @property
    def adapter(self) -> Path:
        return self.run_dir / ADAPTER_FOLDER


def small_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Cases of one short policy: what it decides is the number of days."""
    rng, rows = Random(seed), []
    for number in range(count):
        days = rng.choice([3, 7, 15, 19, 25, 33, 48, 90])
        decision, reason = ("Eligible", "in time") if days <= 20 else ("Not Eligible", "too late")
        case = {"case_id": f"{seed}-{number}", "issue_type": "return", "days": days, "policy_document": POLICY}
        texts = {"reason": f"Day {days} is {reason}.", "customer_response": "Thank you.", "next_action": "Reply"}
        output = {"decision": decision, **texts}
        rows.append({"instruction": "Decide on the return.", "input": case, "output": output})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def train_decisive(folder: Path) -> Decisive:
    """Train in a folder; a second call finds the adapter."""
    rows, held_out = write_rows(folder / "rows.jsonl", small_rows(160, 1)), folder / "held_out.jsonl"
    write_rows(held_out, small_rows(12, 2))
    config = RunConfig(
        model_name=str(BASE),
        dataset_path=str(rows),
        eval_path=str(held_out),
        entity_fields=(),
        overlap="allow",
        output_dir=str(folder),
        lora_r=32,
        lora_alpha=64,
        lora_dropout=0.0,
        learning_rate=8e-3,
        max_steps=40,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=1,
        gradient_checkpointing=False,
        eval_max_new_tokens=LIMIT,
        eval_steps=100,
        min_eval_rows=1,
    )
    run_dir = folder / "run"
    train_adapter(config, prepare_data(config, BASE), run_dir)
    return Decisive(config, run_dir, held_out)


def register_decisive(decisive: Decisive, name: str) -> RunConfig:
    """Register the adapter as champion of a model in the MLflow store of its folder; settings that find it."""
    config = replace(decisive.config, registered_model_name=name)
    rows = prepare_data(config, BASE)
    data, base = load_training_data(rows), digest_base_model(BASE)
    digest = digest_rows(data.train)
    dataset = DatasetRef(publish(rows), digest, len(data.train), len(data.held_out), base)
    fingerprint = run_fingerprint(config, digest, base)
    run = RunRef(fingerprint, str(decisive.run_dir), base, open_tracking_run(config, fingerprint, dataset, rows))
    adapter = publish(decisive.adapter)
    trained = TrainedRef(run, adapter, EvalReport(adapter, len(data.held_out), {}, {}, None))
    number = find_or_create_version(config, trained, "Decides on returns.")
    point_alias(config, CHAMPION, number)
    return config
