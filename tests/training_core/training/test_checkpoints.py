"""A folder is complete or does not count."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from training_core.config import RunConfig, SettingsError
from training_core.folders import MANIFEST, seal, seal_digest
from training_core.model_setup import LoadedModel, load_adapted_model, load_model_and_tokenizer
from training_core.training.adapter import load_leakage_keys, write_adapter
from training_core.training.checkpoints import latest_complete_checkpoint


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "weights.bin").write_bytes(bytes(range(256)))
    (folder / "sub" / "state.json").write_text("{}")
    (folder / "empty").touch()
    seal(folder)
    return folder


def checkpoint(folder: Path, step: int, *, complete: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "weights.bin").write_bytes(b"w" * step)
    if complete:
        seal(path)
    return path


def test_a_sealed_folder_has_the_digest_that_sealing_gave(sealed: Path) -> None:
    assert seal_digest(sealed) == seal(sealed) == seal_digest(sealed)


def test_the_digest_is_that_of_the_content_wherever_it_lies(sealed: Path, tmp_path: Path) -> None:
    shutil.copytree(sealed, tmp_path / "copy")
    assert seal_digest(tmp_path / "copy") == seal_digest(sealed)
    (tmp_path / "copy" / "weights.bin").rename(tmp_path / "copy" / "other.bin")
    assert seal(tmp_path / "copy") != seal_digest(sealed)


@pytest.mark.parametrize("name", ["weights.bin", "sub/state.json", "empty", MANIFEST])
def test_a_folder_that_lacks_a_file_is_not_complete(sealed: Path, name: str) -> None:
    (sealed / name).unlink()
    assert seal_digest(sealed) is None


@pytest.mark.parametrize("name", ["weights.bin", "sub/state.json", "empty"])
@pytest.mark.parametrize("content", [b"", b"{} ", b"\x00" * 256])
def test_a_folder_with_a_changed_file_is_not_complete(sealed: Path, name: str, content: bytes) -> None:
    before = (sealed / name).read_bytes()
    (sealed / name).write_bytes(content)
    assert (seal_digest(sealed) is None) == (content != before)


def test_one_changed_bit_is_found(sealed: Path) -> None:
    (sealed / "weights.bin").write_bytes(bytes([*range(255), 254]))
    assert seal_digest(sealed) is None


@pytest.mark.parametrize(
    "content", [b"", b'{"weights.bin"', b"\x00" * 300, b"\xff\xfe", b"[]", b"null", b'{"empty": 1}']
)
def test_a_folder_with_a_damaged_manifest_is_not_complete(sealed: Path, content: bytes) -> None:
    """A power failure can leave a file of the right size full of zeros."""
    (sealed / MANIFEST).write_bytes(content)
    assert seal_digest(sealed) is None


def test_what_is_no_folder_is_not_complete(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert seal_digest(tmp_path / "file") is None
    assert seal_digest(tmp_path / "nowhere") is None
    assert seal_digest(tmp_path) is None


def test_a_half_written_manifest_does_not_make_a_folder_complete(sealed: Path) -> None:
    (sealed / MANIFEST).rename(sealed / f"{MANIFEST}.draft")
    assert seal_digest(sealed) is None
    assert seal(sealed)
    assert not (sealed / f"{MANIFEST}.draft").exists()


def test_the_latest_checkpoint_is_that_of_the_highest_step(tmp_path: Path) -> None:
    assert latest_complete_checkpoint(tmp_path) is None
    assert latest_complete_checkpoint(tmp_path / "nowhere") is None
    for step in (9, 100, 20):
        checkpoint(tmp_path, step)
    assert latest_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-100"
    assert len(list(tmp_path.iterdir())) == 3


def test_interrupted_and_damaged_checkpoints_are_deleted_and_passed_over(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-15" / "weights.bin").write_bytes(b"")
    checkpoint(tmp_path, 20, complete=False)
    (tmp_path / "checkpoint-25").mkdir()
    checkpoint(tmp_path, 30)
    (tmp_path / "checkpoint-30" / MANIFEST).write_bytes(b"\x00" * 99)
    assert latest_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-5"]


@pytest.mark.parametrize("name", ["checkpoint-best", "checkpoint-10.bak"])
def test_what_somebody_else_put_there_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-99").write_text("a file")
    checkpoint(tmp_path, 5)
    assert latest_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    assert (tmp_path / name).is_dir()


@pytest.fixture(scope="module")
def loaded(tiny_base: Path) -> LoadedModel:
    loaded = load_model_and_tokenizer(RunConfig(model_name=str(tiny_base)))
    torch.manual_seed(1)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return loaded


TRAINED_ON = np.array([3, 2**64 - 1], np.uint64)


def test_an_adapter_folder_holds_exactly_what_is_needed(loaded: LoadedModel, tiny_base: Path, tmp_path: Path) -> None:
    config = RunConfig(model_name=str(tiny_base), learning_rate=3e-4)
    write_adapter(loaded.model, loaded.tokenizer, config, TRAINED_ON, tmp_path / "adapter")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        MANIFEST,
        "run_config.json",
        "system.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert seal_digest(tmp_path / "adapter")
    assert RunConfig.load(tmp_path / "adapter") == config
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "leakage_keys.npz"}


def test_an_adapter_comes_back_bit_by_bit(loaded: LoadedModel, tiny_base: Path, tmp_path: Path) -> None:
    config = RunConfig(model_name=str(tiny_base))
    write_adapter(loaded.model, loaded.tokenizer, config, TRAINED_ON, tmp_path / "adapter")
    again = load_adapted_model(tiny_base, tmp_path / "adapter")
    before = {name: value for name, value in loaded.model.named_parameters() if "lora_" in name}
    after = {name: value for name, value in again.model.named_parameters() if "lora_" in name}
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].dtype == torch.float32
        assert torch.equal(after[name], value), name


def test_saving_an_adapter_again_replaces_it_whole(loaded: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "adapter.draft").mkdir()
    (tmp_path / "adapter.draft" / "half").touch()
    write_adapter(loaded.model, loaded.tokenizer, RunConfig(), TRAINED_ON, tmp_path / "adapter")
    first = seal_digest(tmp_path / "adapter")
    (tmp_path / "adapter" / "stray").touch()
    write_adapter(loaded.model, loaded.tokenizer, RunConfig(), TRAINED_ON, tmp_path / "adapter")
    assert seal_digest(tmp_path / "adapter") == first
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert not names & {"stray", "half"}


def test_leakage_keys_are_written_next_to_the_adapter(loaded: LoadedModel, tmp_path: Path) -> None:
    write_adapter(loaded.model, loaded.tokenizer, RunConfig(), TRAINED_ON, tmp_path / "adapter")
    kept = load_leakage_keys(tmp_path)
    assert kept.dtype == np.uint64 and np.array_equal(kept, TRAINED_ON)


def test_leakage_keys_of_another_secret_are_rejected(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFT_FLOW_SECRET", "one")
    write_adapter(loaded.model, loaded.tokenizer, RunConfig(), TRAINED_ON, tmp_path / "adapter")
    assert np.array_equal(load_leakage_keys(tmp_path), TRAINED_ON)
    for secret in ("two", ""):
        monkeypatch.setenv("SFT_FLOW_SECRET", secret)
        with pytest.raises(SettingsError, match="written with another secret"):
            load_leakage_keys(tmp_path)


def test_an_adapter_that_does_not_say_what_it_was_trained_on_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = load_leakage_keys(tmp_path)
    assert kept.dtype == np.uint64 and len(kept) == 0
    assert "leakage_keys.npz is missing" in caplog.text
