"""The run fingerprint changes with everything that determines the weights and with nothing else."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from training_core.config import RunConfig
from training_core.model_setup import digest_base_model
from training_core.training.fingerprint import digest_rows, run_fingerprint

DETERMINES_THE_WEIGHTS = {
    "max_seq_length": 1024,
    "seed": 1,
    "lora_r": 8,
    "lora_alpha": 8,
    "lora_dropout": 0.1,
    "target_modules": "q_proj",
    "num_train_epochs": 1,
    "max_steps": 5,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "linear",
    "warmup_ratio": 0.1,
    "weight_decay": 0.1,
    "max_grad_norm": 0.5,
    "optim": "adamw_torch",
    "packing": False,
    "precision": "bf16",
    "quantisation": "none",
    "sharding": "fsdp",
}
ANOTHER_PLACE_OR_EVALUATION = {
    "model_name": "a/copy",
    "model_revision": "v1",
    "dataset_path": "a/copy.jsonl",
    "output_dir": "elsewhere",
    "cache_dir": "elsewhere",
    "registered_model_name": "another",
    "logging_steps": 1,
    "save_steps": 1,
    "eval_steps": 1,
    "save_total_limit": 2,
    "per_device_eval_batch_size": 1,
    "on_out_of_memory": "halve",
    "max_eval_rows": 1,
    "eval_batch_size": 1,
    "eval_max_new_tokens": 1,
    "constrain": "none",
    "max_automatic_error": 0.01,
    "group_by": "x",
    "favourable_decisions": ["x"],
    "min_improvement": 0.5,
    "min_eval_rows": 7,
    "min_usable": 0.5,
    "slice_fields": ["x"],
    "answer_audit": "x:y",
    "max_favourable_rise": 0.5,
    "max_refused_rise": 0.5,
    "require_approval": True,
    "train_on": "train-flow/gpu",
    "max_queue_hours": 1,
}
ROWS = [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4, 5], "labels": [-100, 5]}]


def fingerprint(**settings: Any) -> str:
    return run_fingerprint(RunConfig(**settings), "rows", "base")


@pytest.mark.parametrize("name", DETERMINES_THE_WEIGHTS)
def test_fingerprint_changes_with_settings_that_determine_the_weights(name: str) -> None:
    assert fingerprint(**{name: DETERMINES_THE_WEIGHTS[name]}) != fingerprint()


@pytest.mark.parametrize("name", ANOTHER_PLACE_OR_EVALUATION)
def test_fingerprint_does_not_change_with_places_and_evaluation(name: str) -> None:
    assert fingerprint(**{name: ANOTHER_PLACE_OR_EVALUATION[name]}) == fingerprint()


def test_fingerprint_changes_with_settings_added_later() -> None:
    """A new setting is part of the fingerprint until it is listed here as one that does not determine the weights."""
    names = {field.name for field in dataclasses.fields(RunConfig)}
    shown_in_the_rows = {
        *("eval_path", "val_split", "split_seed", "entity_fields", "overlap"),
        *("overlong", "allowed_decisions", "max_refused_share", "label_audit"),
    }
    listed = ANOTHER_PLACE_OR_EVALUATION.keys() | shown_in_the_rows
    assert names - RunConfig().training_settings().keys() <= listed


def test_fingerprint_changes_with_rows_and_base() -> None:
    config = RunConfig()
    found = {run_fingerprint(config, rows, base) for rows in ("a", "b", "ab", "") for base in ("a", "b", "ab", "")}
    assert len(found) == 16


def test_fingerprint_is_the_same_for_equal_numbers() -> None:
    assert fingerprint(num_train_epochs=3) == fingerprint(num_train_epochs=3.0) == fingerprint(num_train_epochs="3")


@pytest.mark.parametrize(
    "rows",
    [
        ROWS[:1],
        ROWS[::-1],
        [*ROWS, ROWS[0]],
        [{"input_ids": [1, 2, 4], "labels": [-100, 2, 3]}, ROWS[1]],
        [{"input_ids": [1, 2, 3], "labels": [-100, -100, 3]}, ROWS[1]],
        [{"input_ids": [1, 2, 3, 4], "labels": [-100, 2, 3, 4]}, {"input_ids": [5], "labels": [5]}],
        [{"input_ids": [1, 2], "labels": [-100, 2]}, {"input_ids": [3, 4, 5], "labels": [3, -100, 5]}],
    ],
)
def test_digest_of_rows_changes_with_any_change(rows: list[dict[str, list[int]]]) -> None:
    assert digest_rows(Dataset.from_list(rows)) != digest_rows(Dataset.from_list(ROWS))


def test_digest_of_rows_distinguishes_one_row_from_two() -> None:
    one, two = [{"input_ids": [5, 5], "labels": [5, 5]}], [{"input_ids": [5], "labels": [5]}] * 2
    assert digest_rows(Dataset.from_list(one)) != digest_rows(Dataset.from_list(two))


def test_digest_of_rows_covers_tokens_and_labels_only(tmp_path: Path) -> None:
    """Not over line numbers or the format on disk."""
    rows = Dataset.from_list([row | {"line": i, "decision": "x"} for i, row in enumerate(ROWS)])
    rows.save_to_disk(tmp_path / "rows")
    assert digest_rows(Dataset.load_from_disk(tmp_path / "rows")) == digest_rows(Dataset.from_list(ROWS))
    assert digest_rows(rows.select([1, 0]).select([1, 0])) == digest_rows(Dataset.from_list(ROWS))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"])
def test_digest_of_base_changes_with_each_file(tiny_base: Path, tmp_path: Path, name: str) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    before = digest_base_model(base)
    assert before == digest_base_model(tiny_base)
    raw = bytearray((base / name).read_bytes())
    raw[-1] ^= 1
    (base / name).write_bytes(raw)
    changed = digest_base_model(base)
    (base / name).unlink()
    assert len({before, changed, digest_base_model(base)}) == 3


def test_digest_of_base_ignores_other_files(tiny_base: Path, tmp_path: Path) -> None:
    base = tmp_path / "copy"
    shutil.copytree(tiny_base, base)
    (base / "README.md").write_text("about")
    (base / ".gitattributes").touch()
    assert digest_base_model(base) == digest_base_model(tiny_base)
