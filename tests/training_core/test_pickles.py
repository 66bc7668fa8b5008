"""A pickle is a program: none is run, whichever file of a base, an adapter or a checkpoint it is in."""

import contextlib
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_training

from training_core.config import RunConfig, SettingsError
from training_core.data_loader import prepare_data
from training_core.dataset.store import TrainingData, load_training_data
from training_core.export.folder_runtime import FolderRuntime
from training_core.export.runtimes import ask_merged
from training_core.folders import MANIFEST, complete_folder, seal_digest
from training_core.model_setup import load_adapted_model, load_base, load_model_and_tokenizer
from training_core.trainer import train_model
from training_core.utils import Precision, validate_args

FP32 = Precision("fp32", "a test")
OF_ITS_OWN: dict[str, tuple[str, dict[str, object]]] = {
    "model": ("config.json", {"model_type": "own", "auto_map": dict.fromkeys(("AutoConfig", "AutoModel"), "own.Own")}),
    "tokenizer": (
        "tokenizer_config.json",
        {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}},
    ),
}
WEIGHTS = ("pytorch_model.bin", "model.pt", "pytorch_model.bin.index.json")


class Program:
    """What unpickling runs: it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "the program ran"


def write_program(file: Path, marker: Path, *, as_archive: bool) -> None:
    """As ``torch.save`` writes it, or as a bare pickle."""
    if as_archive:
        torch.save({"state": Program(marker)}, file)
    else:
        file.write_bytes(pickle.dumps(Program(marker)))


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


@pytest.mark.parametrize("as_archive", [True, False])
def test_program_in_a_test_file_would_run(marker: Path, tmp_path: Path, as_archive: bool) -> None:
    write_program(tmp_path / "file", marker, as_archive=as_archive)
    if as_archive:
        torch.load(tmp_path / "file", weights_only=False)
    else:
        pickle.loads((tmp_path / "file").read_bytes())
    assert marker.exists()


@pytest.mark.parametrize("as_archive", [True, False])
def test_base_with_pickled_weights_alone_is_refused(
    base: Path, sample_rows: Path, marker: Path, as_archive: bool
) -> None:
    (base / "model.safetensors").unlink()
    write_program(base / "pytorch_model.bin", marker, as_archive=as_archive)
    with pytest.raises(SettingsError, match=r"safetensors"):
        validate_args(RunConfig(model_name=str(base), dataset_path=str(sample_rows), output_dir=str(base / "out")))
    with pytest.raises(OSError, match=r"safetensors"):
        load_base(base, FP32, "none")
    assert not marker.exists()


def test_pickled_weights_next_to_a_base_are_not_read(base: Path, marker: Path) -> None:
    for name in WEIGHTS:
        write_program(base / name, marker, as_archive=True)
    assert load_base(base, FP32, "none")
    assert not marker.exists()


def test_adapter_with_pickled_weights_is_refused(base: Path, tmp_path: Path, marker: Path) -> None:
    adapter = tmp_path / "adapter"
    config = RunConfig(model_name=str(base), lora_r=2, quantisation="none", precision="fp32")
    load_model_and_tokenizer(config).model.save_pretrained(str(adapter))
    config.save(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    write_program(adapter / "adapter_model.bin", marker, as_archive=True)
    with pytest.raises(pickle.UnpicklingError):
        load_adapted_model(base, adapter)
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["weights", "model", "tokenizer"])
def test_program_in_an_exported_folder_is_refused(
    base: Path, marker: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "yes")  # to transformers' question whether to run it
    if kind == "weights":
        (base / "model.safetensors").unlink()
        write_program(base / "pytorch_model.bin", marker, as_archive=True)
    else:
        (base / "own.py").write_text(f"open({str(marker)!r}, 'w')\nclass Own: pass\n")
        file, own = OF_ITS_OWN[kind]
        (base / file).write_text(json.dumps(json.loads((base / file).read_text()) | own))
    with contextlib.suppress(SettingsError):  # a tokenizer of its own is left out where the files suffice
        FolderRuntime.load(base, base)
    with contextlib.suppress(OSError, ValueError):
        ask_merged(base, [], RunConfig())
    assert not marker.exists()


@pytest.fixture(scope="module")
def half_trained(
    tiny_base: Path, sample_rows: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunConfig, TrainingData, Path]:
    """A training with a checkpoint half-way."""
    folder = tmp_path_factory.mktemp("half")
    config = tiny_training(tiny_base, sample_rows, folder, max_steps=2, gradient_accumulation_steps=1, save_steps=1)
    data = load_training_data(prepare_data(config, tiny_base))
    train_model(load_model_and_tokenizer(config), data, config, folder / "run")
    shutil.rmtree(folder / "run" / "checkpoints" / "checkpoint-2")
    (folder / "run" / "training.json").unlink()
    return config, data, folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_checkpoint_with_a_program_runs_nothing(
    half_trained: tuple[RunConfig, TrainingData, Path], tmp_path: Path, marker: Path, name: str
) -> None:
    config, data, finished = half_trained
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    checkpoint = run / "checkpoints" / "checkpoint-1"
    sealed_again = tmp_path / "checkpoint"
    with complete_folder(sealed_again) as draft:
        shutil.copytree(checkpoint, draft, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        assert (draft / name).is_file(), "the test must replace a file that a checkpoint has"
        write_program(draft / name, marker, as_archive=True)
    shutil.rmtree(checkpoint)
    shutil.move(sealed_again, checkpoint)
    assert seal_digest(checkpoint)
    loaded = load_model_and_tokenizer(config)
    if name == "training_args.bin":  # nothing reads it
        train_model(loaded, data, config, run)
    else:
        with pytest.raises(pickle.UnpicklingError):
            train_model(loaded, data, config, run)
    assert not marker.exists()
