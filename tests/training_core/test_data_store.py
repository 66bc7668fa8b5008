"""Encoded rows come back from disk as they were, or not at all; and only what they were made from finds them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from training_core.config import RunConfig
from training_core.data_loader import TrainingData, build_datasets
from training_core.data_store import data_key, load_training_data, save_training_data
from training_core.model_setup import load_tokenizer


@pytest.fixture(scope="module")
def data(tiny_base: Path, sample_rows: Path) -> TrainingData:
    config = RunConfig(dataset_path=str(sample_rows), max_seq_length=4096, val_split=0.3)
    built = build_datasets(config, load_tokenizer(tiny_base))
    assert built.refused
    return built


@pytest.fixture
def folder(data: TrainingData, tmp_path: Path) -> Path:
    save_training_data(data, tmp_path / "data")
    return tmp_path / "data"


def test_saved_data_come_back_equal(data: TrainingData, folder: Path) -> None:
    loaded = load_training_data(folder)
    assert loaded.train[:] == data.train[:]
    assert loaded.held_out[:] == data.held_out[:]
    assert loaded.report == data.report
    assert loaded.refused == data.refused


@pytest.mark.parametrize(
    "refused", [[], [b"\n"], [b"a\rb\r\n", b"\x00\xff\n", b"\n", b"\xe2\x80\xa8\x85\n"]], ids=["none", "blank", "odd"]
)
def test_refused_lines_come_back_byte_for_byte(data: TrainingData, tmp_path: Path, refused: list[bytes]) -> None:
    save_training_data(TrainingData(data.train, data.held_out, data.report, refused), tmp_path / "data")
    assert load_training_data(tmp_path / "data").refused == refused
    assert (tmp_path / "data" / "refused.jsonl").read_bytes() == b"".join(refused)


def test_saving_again_replaces_the_folder_and_leaves_no_draft(data: TrainingData, folder: Path) -> None:
    (folder / "stray").touch()
    loaded = load_training_data(folder)
    save_training_data(loaded, folder)
    assert load_training_data(folder).train[:] == data.train[:]
    assert not (folder / "stray").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["data"]


def test_a_draft_left_by_a_crash_is_in_nobodys_way(data: TrainingData, tmp_path: Path) -> None:
    (tmp_path / "data.draft").mkdir()
    (tmp_path / "data.draft" / "half").touch()
    with pytest.raises(FileNotFoundError):
        load_training_data(tmp_path / "data")
    save_training_data(data, tmp_path / "data")
    assert not (tmp_path / "data" / "half").exists()


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_folder_that_lacks_any_file_is_not_loaded(folder: Path, tmp_path: Path) -> None:
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
def test_a_folder_with_any_changed_file_is_not_loaded(folder: Path, tmp_path: Path, damage: Any) -> None:
    """Cut off, or full of zeros as after a power failure: the manifest itself too."""
    for name in files_of(folder):
        damaged = tmp_path / "damaged"
        shutil.copytree(folder, damaged)
        (damaged / name).write_bytes(damage((damaged / name).read_bytes()))
        with pytest.raises(FileNotFoundError, match="damaged"):
            load_training_data(damaged)
        shutil.rmtree(damaged)


def test_no_folder_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_training_data(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError):
        load_training_data(tmp_path / "file")


@pytest.fixture
def made_from(tmp_path: Path, tiny_base: Path, sample_rows: Path) -> tuple[RunConfig, Path]:
    """Rows, held-out rows and a tokenizer of one's own."""
    shutil.copytree(tiny_base, tmp_path / "base")
    shutil.copy(sample_rows, tmp_path / "rows.jsonl")
    shutil.copy(sample_rows, tmp_path / "held_out.jsonl")
    return (
        RunConfig(dataset_path=str(tmp_path / "rows.jsonl"), eval_path=str(tmp_path / "held_out.jsonl")),
        tmp_path / "base",
    )


@pytest.mark.parametrize(
    "name",
    ["rows.jsonl", "held_out.jsonl", "base/tokenizer.json", "base/tokenizer_config.json", "base/chat_template.jinja"],
)
def test_the_key_changes_with_every_file_that_shapes_the_rows(
    made_from: tuple[RunConfig, Path], tmp_path: Path, name: str
) -> None:
    before = data_key(*made_from)
    with (tmp_path / name).open("ab") as file:
        file.write(b"\n")
    assert data_key(*made_from) != before


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_the_key_changes_with_the_files_of_a_slow_tokenizer(
    made_from: tuple[RunConfig, Path], tmp_path: Path, name: str
) -> None:
    """A base without tokenizer.json has its tokenizer made from these two."""
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
        ("max_refused_share", 0.2),
        ("group_by", "case_id"),
        ("seed", 1),
    ],
)
def test_the_key_changes_with_every_setting_that_shapes_the_rows(
    made_from: tuple[RunConfig, Path], name: str, value: Any
) -> None:
    config, base = made_from
    assert data_key(RunConfig(**vars(config) | {name: value}), base) != data_key(config, base)


def test_the_key_tells_the_held_out_file_from_the_training_file(
    made_from: tuple[RunConfig, Path], tmp_path: Path
) -> None:
    config, base = made_from
    (tmp_path / "rows.jsonl").write_bytes(b"{}\n")
    turned = RunConfig(dataset_path=str(config.eval_path), eval_path=config.dataset_path)
    keys = {data_key(c, base) for c in (config, turned, RunConfig(dataset_path=config.dataset_path))}
    assert len(keys) == 3


def test_the_key_stays_when_weights_and_other_settings_change(
    made_from: tuple[RunConfig, Path], tmp_path: Path
) -> None:
    config, base = made_from
    before = data_key(config, base)
    (base / "model.safetensors").write_bytes(b"other weights")
    other = RunConfig(**vars(config) | {"learning_rate": 1e-5, "output_dir": str(tmp_path / "elsewhere")})
    assert data_key(other, base) == before


def test_the_report_is_readable_json(folder: Path, data: TrainingData) -> None:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["accounts"][0]["lines"] == data.report.accounts[0].lines
    assert len(report["problems"]) == len(data.refused)
