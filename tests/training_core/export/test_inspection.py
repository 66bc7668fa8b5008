"""What the files of an exported folder say is read from the folder alone, whatever is wrong with it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from export_samples import source_of, write_random_adapter

from training_core.config import SettingsError
from training_core.export.adapter import adapter_usage, write_served_adapter
from training_core.export.compared_weights import DAMAGED, Registered
from training_core.export.findings import Finding
from training_core.export.folder_runtime import FolderRuntime
from training_core.export.inspection import inspect_folder
from training_core.export.merged import merged_usage, write_merged
from training_core.export.source import Source
from training_core.export.verdict import Verdict, write_verdict
from training_core.model_setup import load_tokenizer
from training_core.prompts.chat_encoding import ChatEncoder


@pytest.fixture(scope="module")
def source(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """An adapter that was trained over four bits."""
    found = source_of("qwen3", tiny_base, tmp_path_factory.mktemp("source"))
    shutil.rmtree(found.adapter)
    write_random_adapter(found.base, found.adapter, quantisation="nf4")
    return found


def merged(source: Source, folder: Path) -> Path:
    folder.mkdir()
    write_merged(source, folder)
    write_verdict(folder, source, "merged", Verdict("nothing", None, []), "")
    return folder


def adapter(source: Source, folder: Path) -> Path:
    folder.mkdir()
    write_served_adapter(source, folder)
    return folder


def inspected(folder: Path, source: Source) -> list[Finding]:
    known = Registered(source.adapter, source.base, source.base_name, source.base_commit, source.max_new_tokens)
    return inspect_folder(folder, known, ChatEncoder.of(load_tokenizer(source.base)).end_of_turn)


def test_merged_over_four_bits_has_no_defect(source: Source, tmp_path: Path) -> None:
    folder = merged(replace(source, weights="nf4"), tmp_path / "merged")
    assert inspected(folder, source) == []
    (folder / "export.json").unlink()
    assert inspected(folder, source), "the weights are not those of the base as released"


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def test_cut_weights_are_one_finding(source: Source, tmp_path: Path) -> None:
    one, other = merged(source, tmp_path / "merged"), adapter(source, tmp_path / "adapter")
    cut(one / "model.safetensors")
    cut(other / "adapter_model.safetensors")
    for folder in (one, other):
        (found,) = inspected(folder, source)
        assert found.defect == DAMAGED and ".safetensors" in found.sentence
        with pytest.raises(SettingsError, match="cannot load"):
            FolderRuntime.load(folder, source.base)


@pytest.mark.parametrize("values", [{"r": 0}, {"r": "8"}, {"lora_alpha": None}])
def test_rank_that_is_none_is_a_finding(values: dict[str, object], source: Source, tmp_path: Path) -> None:
    folder = adapter(source, tmp_path / "adapter")
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    (found,) = inspected(folder, source)
    assert found.defect == DAMAGED and "expected a rank of at least 1" in found.sentence


def test_folder_is_certified_in_the_format_it_was_exported_in(source: Source, tmp_path: Path) -> None:
    for folder in (merged(source, tmp_path / "merged"), adapter(source, tmp_path / "adapter")):
        model = FolderRuntime.load(folder, source.base).model
        assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_export_has_the_form_of_its_answers(source: Source, tmp_path: Path) -> None:
    (source.adapter / "answer_schema.json").write_text('{"type": "object"}')
    held = replace(source, constrain="schema")
    for folder, usage in ((merged(held, tmp_path / "m"), merged_usage), (adapter(held, tmp_path / "a"), adapter_usage)):
        assert (folder / "answer_schema.json").read_text() == '{"type": "object"}'
        assert "response_format" in usage(held, folder) and "response_format" not in usage(source, folder)
    assert not (merged(source, tmp_path / "free") / "answer_schema.json").exists()
