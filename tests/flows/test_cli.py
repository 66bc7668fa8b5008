"""The `sft-flow` command and the script reject bad input with one message, and write nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "sft-flow": [sys.executable, "-c", "from flows.cli import main; main()", "run"],
    "script": [sys.executable, str(ROOT / "train_qlora_sft.py")],
}

BOTH = [
    pytest.param(COMMANDS["sft-flow"], id="sft-flow"),
    pytest.param(COMMANDS["script"], id="script", marks=pytest.mark.slow),  # always imports torch
]


def call(command: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("command", BOTH)
def test_command_lists_all_bad_settings_and_exits_with_2(command: list[str], tmp_path: Path) -> None:
    settings = tmp_path / "bad.yaml"
    settings.write_text(f"lerning_rate: 1\nlora_r: 0\noptim: sgd\noutput_dir: {tmp_path / 'runs'}\n")
    found = call(command, "--config", str(settings))
    assert found.returncode == 2
    for part in ("3 problems", "did you mean learning_rate", "lora_r: Input should be", "got 'sgd'"):
        assert part in found.stderr
    assert "Traceback" not in found.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


@pytest.mark.parametrize("command", BOTH)
def test_command_lists_missing_files_and_exits_with_2(command: list[str], tmp_path: Path) -> None:
    places = ["--dataset_path", str(tmp_path / "none.jsonl"), "--eval_path", "s3://nowhere/rows.jsonl"]
    model, runs = ["--model_name", str(tmp_path)], ["--output_dir", str(tmp_path / "runs")]
    found = call(command, *places, *model, *runs)
    assert found.returncode == 2
    for part in ("dataset_path:", "holds no file of rows", "eval_path:", "sft-flow[s3]", "lacks config.json"):
        assert part in found.stderr
    assert "Traceback" not in found.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", BOTH)
def test_command_help_lists_every_flag(command: list[str]) -> None:
    found = call(command, "--help")
    assert found.returncode == 0
    assert "--gradient_accumulation_steps" in found.stdout


def test_command_unknown_prints_the_usage() -> None:
    found = call(COMMANDS["sft-flow"][:-1], "trane")
    assert found.returncode == 2
    assert "sft-flow run" in found.stdout
    assert call(COMMANDS["sft-flow"][:-1]).returncode == 0


@pytest.mark.slow
def test_run_with_unfit_rows_exits_with_2(tiny_base: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": 5}\nnot json\n')
    base, runs = ["--model_name", str(tiny_base)], ["--output_dir", str(tmp_path / "runs")]
    for command in COMMANDS.values():
        found = call(command, *base, *runs, "--dataset_path", str(rows))
        assert found.returncode == 2, found.stderr
        assert "got 2 of 2; fix them" in found.stderr
        assert "rows.jsonl:1: instruction: expected a non-empty string, got 5" in found.stderr
        assert found.stderr.count("| Rows") == 1  # the log has the report once
        assert {path.name for path in (tmp_path / "runs").iterdir()} <= {"datasets", "prefect"}


@pytest.mark.slow
def test_command_with_names_that_no_row_has_exits_with_2(tiny_base: Path, sample_rows: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(sample_rows.read_bytes().replace(b'"Eligible"', b'"approve"'))
    settings = ["--model_name", str(tiny_base), "--output_dir", str(tmp_path / "runs"), "--max_seq_length", "4096"]
    wrong = ["--entity_fields", "[case_id, usr_id]"]
    check = [*COMMANDS["sft-flow"][:-1], "check", str(rows)]
    for command in (check, *([*command, "--dataset_path", str(rows)] for command in COMMANDS.values())):
        found = call(command, *settings, *wrong)
        assert found.returncode == 2, found.stderr
        assert "favourable_decisions: no row holds 'Eligible'; the rows hold '" in found.stderr
        assert "'approve'" in found.stderr and "Traceback" not in found.stderr
        assert "entity_fields: no row has 'usr_id'; the cases have '" in found.stderr
        assert {path.name for path in (tmp_path / "runs").iterdir()} <= {"datasets", "prefect"}
    assert call(check, *settings, "--favourable_decisions", "[]").returncode == 0


def test_check_rejects_several_paths_with_a_fix() -> None:
    found = call([*COMMANDS["sft-flow"][:-1], "check"], "one.jsonl", "two.jsonl")
    assert found.returncode == 2
    assert "in quotes" in found.stderr
    assert len(found.stderr.strip().split("\n")) == 2


def test_check_rejects_an_unreachable_base_model_with_a_fix(sample_rows: Path) -> None:
    found = call([*COMMANDS["sft-flow"][:-1], "check"], str(sample_rows), "--model_name", "no/such-model")
    assert found.returncode == 2
    assert "the hub cannot be reached; give --model_name the folder" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.slow
def test_check_reports_as_terminal_text_json_and_page(tiny_base: Path, sample_rows: Path, tmp_path: Path) -> None:
    settings = ["--model_name", str(tiny_base), "--output_dir", str(tmp_path)]
    command = [*COMMANDS["sft-flow"][:-1], "check"]
    fit = call(command, *settings, str(sample_rows), "--max_seq_length", "4096")
    assert fit.returncode == 0, fit.stderr
    unfit = call(command, str(sample_rows), *settings, "--max_refused_share", "0", "--max_seq_length", "4096")
    assert unfit.returncode == 1, unfit.stderr
    assert fit.stdout.strip().split("\n")[-1].startswith("Fit to train on: ")
    assert "NOT fit to train on: 1 rule is broken\n  - rows.jsonl: " in unfit.stdout
    for found in (fit, unfit):
        places = [Path(line[9:]) for line in found.stdout.split("\n") if line[9:10] == "/"]
        assert [place.name for place in places] == ["report.html", "report.json", "rejected.jsonl"]
        assert all(place.is_file() for place in places)


@pytest.mark.slow
def test_check_that_cannot_write_is_one_line(tiny_base: Path, sample_rows: Path) -> None:
    """On /proc no user, not even root, creates a folder."""
    places = ["--model_name", str(tiny_base), "--output_dir", "/proc/runs"]
    found = call(COMMANDS["sft-flow"][:-1], "check", str(sample_rows), *places)
    assert found.returncode == 2
    assert "output_dir: '/proc/runs' is not there: it cannot be created; choose another" in found.stderr
    assert "Traceback" not in found.stderr


def test_check_with_bad_settings_exits_with_2(tmp_path: Path) -> None:
    found = call(
        [*COMMANDS["sft-flow"][:-1], "check"],
        str(tmp_path / "nowhere.jsonl"),
        "--model_name",
        str(tmp_path),
        "--label_audit",
        "no.such:thing",
    )
    assert found.returncode == 2
    for part in ("dataset_path:", "holds no file of rows", "label_audit:", "lacks config.json"):
        assert part in found.stderr
    assert "Traceback" not in found.stderr
