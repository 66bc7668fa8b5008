"""A base whose files are pointers, cut or missing is rejected; layers are named as released."""

import json
from pathlib import Path

import pytest
from tiny_models import tiny_model, tiny_multimodal_model

from training_core.base_weights import INDEX, file_problems, text_prefix

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 988097824\n"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base of several files of weights and their index."""
    tiny_model("qwen3", vocab_size=64).save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(shards(tmp_path)) > 2
    return tmp_path


def shards(base: Path) -> list[Path]:
    return sorted(base.glob("*.safetensors"))


def test_complete_base_has_no_problems(base: Path) -> None:
    assert file_problems(base) == []


@pytest.mark.parametrize("name", ["tokenizer.json", "model-00001-of-00009.safetensors"])
def test_git_lfs_pointer_is_named(base: Path, name: str) -> None:
    (base / name).write_text(POINTER)
    (problem,) = file_problems(base)
    assert problem == f"model_name: {name} is a Git LFS pointer, not the file itself; run git lfs pull in {base}"


@pytest.mark.parametrize("with_index", [True, False])
def test_missing_file_of_weights_is_named(base: Path, with_index: bool) -> None:
    lost = shards(base)[1]
    lost.unlink()
    if not with_index:
        (base / INDEX).unlink()
    assert file_problems(base) == [f"model_name: {base} lacks {lost.name}; copy or download the base again"]


def test_missing_file_that_only_the_index_names_is_found(base: Path) -> None:
    index = json.loads((base / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = "head.safetensors"
    (base / INDEX).write_text(json.dumps(index))
    assert file_problems(base) == [f"model_name: {base} lacks head.safetensors; copy or download the base again"]


@pytest.mark.parametrize("change", [-1, -100, 1])
def test_cut_file_of_weights_is_named(base: Path, change: int) -> None:
    cut = shards(base)[0]
    content = cut.read_bytes()
    cut.write_bytes(content[:change] if change < 0 else content + b"\0" * change)
    (problem,) = file_problems(base)
    assert problem == (
        f"model_name: expected {len(content):,} bytes in {cut}, found {len(content) + change:,}; "
        "copy or download it again"
    )


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\xff" * 100, b"\2\0\0\0\0\0\0\0[]", b"\2\0\0\0\0\0\0\0nul"])
def test_file_that_holds_no_weights_is_named(base: Path, content: bytes) -> None:
    damaged = shards(base)[0]
    damaged.write_bytes(content)
    (problem,) = file_problems(base)
    assert problem == (
        f"model_name: {damaged} is no file of weights, or its beginning is damaged; copy or download it again"
    )


def test_text_part_of_a_multimodal_base_has_its_own_prefix(base: Path, tmp_path: Path) -> None:
    assert text_prefix(base) == "model."
    tiny_multimodal_model(vocab_size=64).save_pretrained(tmp_path / "multimodal")
    assert text_prefix(tmp_path / "multimodal") == "model.language_model."
