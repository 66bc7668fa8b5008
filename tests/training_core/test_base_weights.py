"""A base whose files are pointers, cut or missing is rejected; layers are named as released."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import tiny_model, tiny_multimodal_model

from training_core.base_weights import INDEX, WHOLE, file_problems, text_prefix, weight_files

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
    lost = [shards(base)[1]]
    if not with_index:
        lost.append(base / INDEX)
    for path in lost:
        path.unlink()
    names = ", ".join(path.name for path in lost)
    assert file_problems(base) == [f"model_name: {base} lacks {names}; copy or download the base again"]


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


def header(content: bytes) -> bytes:
    return len(content).to_bytes(8, "little") + content


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\0" * 7, b"\xff" * 100, header(b"[]"), header(b"nul"), header(b"[" * 99_999), header(b'{"a": 1}')),
        *(header(b'{"a": {"data_offsets": [0, 4]}}'), header(b'{"a": {"dtype": "F32", "shape": [1]}}')),
    ],
)
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


def test_one_file_of_weights_needs_no_index(tmp_path: Path) -> None:
    tiny_model("qwen3", vocab_size=64).save_pretrained(tmp_path)
    assert file_problems(tmp_path) == []
    assert set(weight_files(tmp_path).values()) == {WHOLE}


@pytest.mark.parametrize("name", ["weights.safetensors", "pytorch_model.bin", "model.gguf", "consolidated.safetensors"])
def test_weights_under_a_name_that_is_not_read_are_missing(tmp_path: Path, name: str) -> None:
    tiny_model("qwen3", vocab_size=64).save_pretrained(tmp_path)
    (tmp_path / WHOLE).rename(tmp_path / name)
    assert file_problems(tmp_path) == [f"model_name: {tmp_path} lacks {WHOLE}; copy or download the base again"]


def test_index_without_which_shards_are_not_read_is_missing(base: Path) -> None:
    (base / INDEX).unlink()
    assert file_problems(base) == [f"model_name: {base} lacks {INDEX}; copy or download the base again"]


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": ["a"]}', '{"weight_map": {"a": 3}}'])
def test_index_that_names_no_files_is_rejected(base: Path, content: str) -> None:
    (base / INDEX).write_text(content)
    (problem,) = file_problems(base)
    assert problem.startswith(f"model_name: {base / INDEX} does not name the file of each weight; ")


@pytest.mark.parametrize("with_whole", [True, False])
@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/etc/passwd", "folder/model.safetensors", "..", ""])
def test_index_that_names_a_file_outside_its_folder_is_rejected(base: Path, name: str, with_whole: bool) -> None:
    index = json.loads((base / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = name
    (base / INDEX).write_text(json.dumps(index))
    if with_whole:
        shutil.copy(shards(base)[0], base / WHOLE)
    (problem,) = file_problems(base)
    assert problem.startswith(f"model_name: {base / INDEX} names files that are not in its folder: {name}; ")


def test_folder_of_an_adapter_is_no_base(base: Path) -> None:
    (base / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    assert file_problems(base) == [f"model_name: {base} holds an adapter; give the base that it was trained on"]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.symlink_to("/nowhere/at/all"), "is a link to a file that does not exist"),
        (lambda path: os.mkfifo(path), "is not a regular file"),
    ],
)
def test_what_is_no_file_is_named_and_not_opened(
    base: Path, name: str, make: Callable[[Path], object], words: str
) -> None:
    (base / name).unlink(missing_ok=True)
    make(base / name)
    assert file_problems(base) == [f"model_name: {base / name} {words}; copy or download it again"]


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", INDEX]
)
@pytest.mark.parametrize("content", ["", "{", "<html>404</html>", '\ufeff{"a": 1}', "[" * 9_999, "[]", "null", "5"])
def test_file_that_is_no_json_object_is_named(base: Path, name: str, content: str) -> None:
    (base / name).write_text(content, encoding="utf-8")
    (problem,) = file_problems(base)
    assert problem.startswith(f"model_name: {base / name} is not ")
    assert problem.endswith("; copy or download it again")
    assert "\n" not in problem
