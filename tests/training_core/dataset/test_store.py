"""A folder of encoded rows is complete or rejected, and reused only for the same inputs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from row_samples import records, to_line, write
from sample_report import report

from training_core import data_loader
from training_core.config import RunConfig, SettingsError
from training_core.data_loader import build_datasets, data_key, prepare_data
from training_core.dataset.report import DataReport, DecisionCount
from training_core.dataset.store import (
    load_report,
    load_training_data,
    require_fit_rows,
    require_known_names,
)
from training_core.rows.strict_json import DataError


@pytest.fixture(scope="module")
def prepared(tiny_base: Path, sample_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = str(tmp_path_factory.mktemp("prepared"))
    config = RunConfig(dataset_path=str(sample_rows), output_dir=output, max_seq_length=4096, val_split=0.3)
    return prepare_data(config, tiny_base)


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "data"))


def test_prepare_data_writes_exactly_the_promised_files(prepared: Path) -> None:
    assert files_of(prepared) == [
        *("held_out.arrow", "leakage_keys.npy", "manifest.json", "problems.jsonl"),
        *("rejected.jsonl", "report.html", "report.json"),
        "train.arrow",
    ]
    assert sorted(path.name for path in prepared.parent.iterdir()) == [f".{prepared.name}.lock", prepared.name]
    data = load_training_data(prepared)
    (account,) = data.report.accounts
    assert (len(data.train), len(data.held_out)) == (account.trained, account.held_out)
    assert data.train.column_names == ["input_ids", "labels", "line", "decision", "group"]
    assert data.held_out.column_names == [*data.train.column_names, "file", "record"]
    assert (prepared / "rejected.jsonl").read_bytes().count(b"\n") == account.rejected > 0


def test_prepare_data_reuses_the_folder_of_unchanged_input(
    made_from: tuple[RunConfig, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepare_data(*made_from)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setattr(data_loader, "build_datasets", None)
    assert prepare_data(*made_from) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_prepare_data_replaces_a_damaged_folder(made_from: tuple[RunConfig, Path]) -> None:
    folder = prepare_data(*made_from)
    whole = (folder / "train.arrow").read_bytes()
    (folder / "train.arrow").write_bytes(whole[:-1])
    (folder / "stray").touch()
    assert prepare_data(*made_from) == folder
    assert (folder / "train.arrow").read_bytes() == whole
    assert not (folder / "stray").exists()


PREPARE = """
import sys
from pathlib import Path
from training_core.config import RunConfig
from training_core.data_loader import prepare_data
sys.stdout.write(str(prepare_data(RunConfig.load(sys.argv[1]), Path(sys.argv[2]))))
"""


def start(config: RunConfig, base: Path, folder: Path) -> "subprocess.Popen[str]":
    config.save(folder)
    return subprocess.Popen([sys.executable, "-c", PREPARE, str(folder), str(base)], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_prepare_data_works_in_two_processes_at_once(made_from: tuple[RunConfig, Path], tmp_path: Path) -> None:
    both = [start(*made_from, tmp_path / "settings") for _ in range(2)]
    folders = {process.communicate(timeout=200)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    (folder,) = folders
    load_training_data(Path(folder))
    assert not list(Path(folder).parent.glob("*.draft"))


@pytest.mark.slow
def test_prepare_data_works_after_a_killed_process(made_from: tuple[RunConfig, Path], tmp_path: Path) -> None:
    config, base = made_from
    write(tmp_path / "rows.jsonl", records(40_000))
    datasets = Path(config.output_dir) / "datasets"
    process = start(config, base, tmp_path / "settings")
    deadline = time.monotonic() + 120
    while not any(path.stat().st_size for path in datasets.glob("*.draft/encoded.arrow")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    (draft,) = datasets.glob("*.draft")
    folder = draft.with_suffix("")
    assert not folder.exists()
    with pytest.raises(FileNotFoundError):
        load_training_data(draft)
    write(tmp_path / "small.jsonl", records(30))
    (draft / "half").touch()
    assert prepare_data(replace(config, dataset_path=str(tmp_path / "small.jsonl")), base).exists()
    assert prepare_data(config, base) == folder
    assert "half" not in files_of(folder)
    assert not draft.exists()


def test_unfit_rows_are_reported_but_not_loaded(tiny_base: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [b"{", *records(3), *(b"[" for _ in range(30))])
    folder = prepare_data(RunConfig(dataset_path=rows, output_dir=str(tmp_path)), tiny_base)
    assert load_report(folder).accounts[0].rejected == 31
    with pytest.raises(DataError) as caught:
        load_training_data(folder)
    with pytest.raises(DataError):
        require_fit_rows(load_report(folder))
    text = str(caught.value)
    assert "got 31 of 34; fix them" in text
    assert f"{rows}:1: line: invalid JSON" in text
    assert "and 11 more" in text


def test_favourable_decisions_must_occur_in_the_rows() -> None:
    rows = report(decisions=[DecisionCount("approve", 4, 0), DecisionCount("deny", 1, 3)])
    with pytest.raises(SettingsError) as caught:
        require_known_names(rows, RunConfig())
    assert caught.value.problems == [
        "favourable_decisions: no row holds 'Eligible'; the rows hold 'approve', 'deny'; "
        "name those in the customer's favour, or [] if there are none"
    ]


@pytest.mark.parametrize("favourable", [("approve",), ("Eligible", "approve"), ()])
def test_favourable_decisions_need_one_that_occurs_or_none(favourable: tuple[str, ...]) -> None:
    rows = report(decisions=[DecisionCount("approve", 0, 1), DecisionCount("deny", 1, 3)])
    require_known_names(rows, RunConfig(favourable_decisions=favourable))


def test_favourable_decisions_message_names_the_most_frequent_decisions() -> None:
    rows = report(decisions=[DecisionCount(f"code {i}", 1, 1) for i in range(1000)])
    with pytest.raises(SettingsError, match="'code 19' and 980 more; name"):
        require_known_names(rows, RunConfig())


FIELDS = "the cases have 'issue_type', 'case_id'; "


@pytest.mark.parametrize(
    ("setting", "value", "problem"),
    [
        ("group_by", "topic", f"no row has 'topic'; {FIELDS}name the field that says what kind of case a row is"),
        (
            "entity_fields",
            ("case_id", "usr_id"),
            f"no row has 'usr_id'; {FIELDS}correct the names or leave them out; []",
        ),
        ("slice_fields", ("country",), f"no row has 'country'; {FIELDS}correct the names or leave them out"),
    ],
)
def test_fields_that_no_row_has_are_rejected(setting: str, value: object, problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        require_known_names(report(), RunConfig(**{setting: value}))
    (found,) = caught.value.problems
    assert found.startswith(f"{setting}: {problem}")
    with pytest.raises(SettingsError, match="no fields: no row has a case"):
        require_known_names(report(case_fields=[]), RunConfig(**{setting: value}))


def test_default_fields_need_not_occur() -> None:
    require_known_names(report(), RunConfig())
    require_known_names(report(case_fields=[]), RunConfig())
    with pytest.raises(SettingsError, match="group_by: no row has 'issue_type'"):
        require_known_names(report(case_fields=["case_id"]), RunConfig())


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_load_training_data_rejects_a_missing_file(folder: Path, tmp_path: Path) -> None:
    for name in files_of(folder):
        damaged = tmp_path / "damaged"
        shutil.copytree(folder, damaged)
        (damaged / name).unlink()
        with pytest.raises(FileNotFoundError, match="damaged"):
            load_training_data(damaged)
        shutil.rmtree(damaged)


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-1], lambda raw: b"\x00" * len(raw), lambda raw: b""], ids=["cut", "zeros", "empty"]
)
def test_load_training_data_rejects_a_changed_file(folder: Path, tmp_path: Path, damage: Any) -> None:
    """Truncated, or full of zeros as after a power failure; this includes the manifest."""
    for name in files_of(folder):
        damaged = tmp_path / "damaged"
        shutil.copytree(folder, damaged)
        (damaged / name).write_bytes(damage((damaged / name).read_bytes()))
        with pytest.raises(FileNotFoundError, match="damaged"):
            load_training_data(damaged)
        shutil.rmtree(damaged)


def test_load_training_data_rejects_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_training_data(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError):
        load_training_data(tmp_path / "file")


@pytest.fixture
def made_from(tmp_path: Path, tiny_base: Path, sample_rows: Path) -> tuple[RunConfig, Path]:
    """Settings and base with files of their own, which tests may change."""
    shutil.copytree(tiny_base, tmp_path / "base")
    shutil.copy(sample_rows, tmp_path / "rows.jsonl")
    write(tmp_path / "held_out.jsonl", records(10, start=10**6))
    config = RunConfig(
        dataset_path=str(tmp_path / "rows.jsonl"),
        eval_path=str(tmp_path / "held_out.jsonl"),
        output_dir=str(tmp_path / "runs"),
    )
    return config, tmp_path / "base"


@pytest.mark.parametrize(
    "name",
    ["rows.jsonl", "held_out.jsonl", "base/tokenizer.json", "base/tokenizer_config.json", "base/chat_template.jinja"],
)
def test_data_key_depends_on_every_input_file(made_from: tuple[RunConfig, Path], tmp_path: Path, name: str) -> None:
    before = data_key(*made_from)
    with (tmp_path / name).open("ab") as file:
        file.write(b"\n")
    assert data_key(*made_from) != before


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_data_key_depends_on_files_of_a_slow_tokenizer(
    made_from: tuple[RunConfig, Path], tmp_path: Path, name: str
) -> None:
    """Without tokenizer.json, the tokenizer is built from these two files."""
    (tmp_path / "base" / "tokenizer.json").unlink()
    (tmp_path / "base" / name).write_text("one")
    before = data_key(*made_from)
    (tmp_path / "base" / name).write_text("two")
    assert data_key(*made_from) != before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("val_split", 0.2),
        ("max_seq_length", 1024),
        ("overlong", "error"),
        ("overlap", "drop"),
        ("entity_fields", ("order_id",)),
        ("allowed_decisions", ("Eligible",)),
        ("label_audit", "samples.cases:audit"),
        ("packing", False),
        ("per_device_train_batch_size", 2),
        ("gradient_accumulation_steps", 2),
        ("max_refused_share", 0.2),
        ("group_by", "case_id"),
        ("seed", 1),
    ],
)
def test_data_key_depends_on_every_setting_of_the_rows(
    made_from: tuple[RunConfig, Path], name: str, value: Any
) -> None:
    config, base = made_from
    assert data_key(RunConfig(**vars(config) | {name: value}), base) != data_key(config, base)


def test_data_key_distinguishes_training_and_held_out_file(made_from: tuple[RunConfig, Path], tmp_path: Path) -> None:
    config, base = made_from
    (tmp_path / "rows.jsonl").write_bytes(b"{}\n")
    turned = RunConfig(dataset_path=str(config.eval_path), eval_path=config.dataset_path)
    keys = {data_key(c, base) for c in (config, turned, RunConfig(dataset_path=config.dataset_path))}
    assert len(keys) == 3


def test_data_key_ignores_weights_and_other_settings(made_from: tuple[RunConfig, Path], tmp_path: Path) -> None:
    config, base = made_from
    before = data_key(config, base)
    (base / "model.safetensors").write_bytes(b"other weights")
    other = RunConfig(**vars(config) | {"learning_rate": 1e-5, "output_dir": str(tmp_path / "elsewhere")})
    assert data_key(other, base) == before


def test_data_key_depends_on_row_files_in_a_folder(tmp_path: Path, tiny_base: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(to_line(records(1)[0]))
    config = RunConfig(dataset_path=str(tmp_path))
    before = data_key(config, tiny_base)
    (tmp_path / "notes.txt").touch()
    assert data_key(config, tiny_base) == before
    (tmp_path / "c.jsonl").touch()
    assert data_key(config, tiny_base) != before


def test_report_file_is_json(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["accounts"][0]["lines"] == 120
    assert len(report["problems"]) == (folder / "problems.jsonl").read_text(encoding="utf-8").count("\n")


def test_data_key_depends_on_the_code_of_label_audit(
    made_from: tuple[RunConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a corrected rule, the report must be made again."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "shop_rules").mkdir()
    for name in ("__init__.py", "returns.py", "limits.py"):
        (tmp_path / "shop_rules" / name).write_text("def audit(record):\n    return None\n")
    config, base = made_from
    config = replace(config, label_audit="shop_rules.returns:audit")
    before = data_key(config, base)
    assert data_key(config, base) == before
    (tmp_path / "shop_rules" / "limits.py").write_text("LIMIT = 31\n")
    assert data_key(config, base) != before


def test_prepare_data_rejects_rows_that_change_while_read(
    made_from: tuple[RunConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the new rows would be stored under the key of the old ones."""

    def build_and_append(*args: Any) -> DataReport:
        report = build_datasets(*args)
        with (tmp_path / "rows.jsonl").open("ab") as file:
            file.write(b"\n")
        return report

    monkeypatch.setattr(data_loader, "build_datasets", build_and_append)
    with pytest.raises(DataError, match="changed while they were read"):
        prepare_data(*made_from)
    monkeypatch.undo()
    assert load_report(prepare_data(*made_from)).accounts
