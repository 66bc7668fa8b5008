"""An adapter folder is complete and reloads bit by bit; its leakage keys are next to it."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from released_templates import released_template
from tiny_models import tiny_multimodal_model, write_base

from training_core.base_model import adapted_layers
from training_core.config import RunConfig, SettingsError
from training_core.dataset.encoding import LEAKAGE_SCHEME, SECRET
from training_core.folders import MANIFEST, seal_digest
from training_core.model_setup import LoadedModel, load_adapted_model, load_model_and_tokenizer, load_tokenizer
from training_core.prompts.chat_encoding import ChatEncoder
from training_core.training.adapter import LEAKAGE_KEYS_FILE, load_leakage_keys, write_adapter


@pytest.fixture(scope="module")
def loaded(tiny_base: Path) -> LoadedModel:
    return with_effect(load_model_and_tokenizer(RunConfig(model_name=str(tiny_base))))


def with_effect(loaded: LoadedModel) -> LoadedModel:
    """An adapter that changes what its base answers: a fresh one does not."""
    torch.manual_seed(1)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return loaded


LEAKAGE_KEYS = np.array([3, 2**64 - 1], np.uint64)


def test_adapter_folder_holds_exactly_the_needed_files(loaded: LoadedModel, tiny_base: Path, tmp_path: Path) -> None:
    config = RunConfig(model_name=str(tiny_base), learning_rate=3e-4)
    write_adapter(loaded.model, loaded.tokenizer, config, LEAKAGE_KEYS, tmp_path / "adapter")
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
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", LEAKAGE_KEYS_FILE}


def test_adapter_reloads_bit_by_bit(loaded: LoadedModel, tiny_base: Path, tmp_path: Path) -> None:
    config = RunConfig(model_name=str(tiny_base))
    write_adapter(loaded.model, loaded.tokenizer, config, LEAKAGE_KEYS, tmp_path / "adapter")
    again = load_adapted_model(tiny_base, tmp_path / "adapter")
    before = {name: value for name, value in loaded.model.named_parameters() if "lora_" in name}
    after = {name: value for name, value in again.model.named_parameters() if "lora_" in name}
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].dtype == torch.float32
        assert torch.equal(after[name], value), name


def test_adapter_that_does_not_name_a_quantisation_is_nf4(loaded: LoadedModel, tiny_base: Path, tmp_path: Path) -> None:
    write_adapter(loaded.model, loaded.tokenizer, RunConfig(model_name=str(tiny_base)), LEAKAGE_KEYS, tmp_path / "a")
    (tmp_path / "a" / "run_config.json").write_text("{}")
    again = load_adapted_model(tiny_base, tmp_path / "a")
    assert {weight.dtype for weight in again.model.parameters()} == {torch.float32, torch.uint8}


def test_adapter_of_a_multimodal_base_names_layers_as_released(tiny_base: Path, tmp_path: Path) -> None:
    """What serves the released base loads every weight of the adapter, and so do we."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    released = write_base(tiny_multimodal_model(vocab_size=1000), tiny_base, base)
    config = RunConfig(model_name=str(base))
    loaded = with_effect(load_model_and_tokenizer(config))
    write_adapter(loaded.model, loaded.tokenizer, config, LEAKAGE_KEYS, adapter)
    served, again = PeftModel.from_pretrained(released, adapter), load_adapted_model(base, adapter)
    expected = {name: value for name, value in loaded.model.named_parameters() if "lora_" in name}
    assert len(expected) == 2 * len(adapted_layers(config, base))
    for name, value in expected.items():
        assert torch.equal(again.model.get_parameter(name), value)
        assert torch.equal(served.get_parameter(name.replace(".model.model.", ".model.model.language_model.")), value)


def test_adapter_asks_as_in_training_where_nobody_says_so(loaded: LoadedModel, tmp_path: Path) -> None:
    tokenizer = copy.copy(loaded.tokenizer)
    tokenizer.chat_template = released_template("qwen3_5_think")
    config = RunConfig(model_name=str(loaded.model.get_base_model().name_or_path))
    write_adapter(loaded.model, tokenizer, config, LEAKAGE_KEYS, tmp_path / "adapter")
    question = [{"role": "system", "content": "Decide."}, {"role": "user", "content": "Case 1"}]
    served = load_tokenizer(tmp_path / "adapter").apply_chat_template(
        question, add_generation_prompt=True, return_dict=False
    )
    assert served == ChatEncoder.of(tokenizer).encode_prompt(question)
    assert tokenizer.chat_template == released_template("qwen3_5_think")


def test_write_adapter_replaces_the_whole_folder(loaded: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "adapter.draft").mkdir()
    (tmp_path / "adapter.draft" / "half").touch()
    write_adapter(loaded.model, loaded.tokenizer, RunConfig(), LEAKAGE_KEYS, tmp_path / "adapter")
    first = seal_digest(tmp_path / "adapter")
    (tmp_path / "adapter" / "stray").touch()
    write_adapter(loaded.model, loaded.tokenizer, RunConfig(), LEAKAGE_KEYS, tmp_path / "adapter")
    assert seal_digest(tmp_path / "adapter") == first
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert not names & {"stray", "half"}


def test_leakage_keys_are_written_next_to_the_adapter(loaded: LoadedModel, tmp_path: Path) -> None:
    write_adapter(loaded.model, loaded.tokenizer, RunConfig(), LEAKAGE_KEYS, tmp_path / "adapter")
    kept = load_leakage_keys(tmp_path)
    assert kept.dtype == np.uint64 and np.array_equal(kept, LEAKAGE_KEYS)


def test_leakage_keys_of_another_secret_are_rejected(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECRET, "one")
    write_adapter(loaded.model, loaded.tokenizer, RunConfig(), LEAKAGE_KEYS, tmp_path / "adapter")
    assert np.array_equal(load_leakage_keys(tmp_path), LEAKAGE_KEYS)
    for secret in ("two", ""):
        monkeypatch.setenv(SECRET, secret)
        with pytest.raises(SettingsError, match="written with another secret"):
            load_leakage_keys(tmp_path)


@pytest.mark.parametrize("scheme", [{}, {"scheme": LEAKAGE_SCHEME + 1}])
def test_leakage_keys_of_another_scheme_are_used_with_a_warning(
    scheme: dict[str, int], loaded: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_adapter(loaded.model, loaded.tokenizer, RunConfig(), LEAKAGE_KEYS, tmp_path / "adapter")
    caplog.clear()
    load_leakage_keys(tmp_path)
    assert not caplog.records
    with np.load(tmp_path / LEAKAGE_KEYS_FILE) as written:
        older = {name: written[name] for name in ("keys", "secret")} | scheme
    np.savez(tmp_path / LEAKAGE_KEYS_FILE, **older)
    assert np.array_equal(load_leakage_keys(tmp_path), LEAKAGE_KEYS)
    (record,) = caplog.records
    assert "held-out rows that an older version was trained on may not be recognised" in record.getMessage()


def test_missing_leakage_keys_log_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = load_leakage_keys(tmp_path)
    assert kept.dtype == np.uint64 and len(kept) == 0
    assert f"{LEAKAGE_KEYS_FILE} is missing" in caplog.text
