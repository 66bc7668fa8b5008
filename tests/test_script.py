"""The plain script: the same training without Prefect and MLflow."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "train_qlora_sft.py"


@pytest.mark.slow
def test_script_writes_the_promised_files_and_prints_tables(tiny_base: Path, sample_rows: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("max_steps: 4\ngradient_checkpointing: false\nmax_eval_rows: 4\neval_max_new_tokens: 4\n")
    places = [
        "--model_name",
        str(tiny_base),
        "--dataset_path",
        str(sample_rows),
        "--output_dir",
        str(tmp_path / "runs"),
    ]
    batches = ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"]
    command = [sys.executable, str(SCRIPT), "--config", str(settings), *places, *batches]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == 0, found.stderr
    assert "Every line accounted for" in found.stdout and "lookup table" in found.stdout

    (run,) = (path for path in (tmp_path / "runs").iterdir() if path.name != "datasets")
    assert {path.name for path in run.iterdir()} == {
        "adapter",
        "checkpoints",
        "evaluation",
        "journal.jsonl",
        "leakage_keys.npz",
        "training.json",
        "training.lock",
    }
    assert {path.name for path in (run / "adapter").iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "run_config.json", "system.json", "manifest.json"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "answer_schema.json"),
    }
    assert {path.name for path in (run / "evaluation").iterdir()} == {
        *(
            "scores.json",
            "comparison.json",
            "free_answers.json",
            "parity_sample.json",
            "confusion.png",
            "loss_curve.png",
        ),
        *("manifest.json", "training.json", "rows.jsonl", "policies.json"),
        *(f"predictions_{name}.jsonl" for name in ("base", "candidate", "majority", "lookup_table")),
    }
