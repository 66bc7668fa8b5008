"""The files of a base model that are downloaded, and when; and a tokenizer that cannot be used, which is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects

from training_core.config import RunConfig, SettingsError
from training_core.data_loader import data_key, prepare_data
from training_core.model_setup import fetch_base_model, fetch_tokenizer, load_tokenizer

Fetch = Callable[[str, str | None], Path]


@pytest.fixture
def hub(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of a hub with one base model."""
    files = [path.name for path in tiny_base.iterdir()]
    others = ["model.safetensors.index.json", "merges.txt", "README.md", "onnx/config.json"]

    def download(name: str, *, revision: str | None, cache_dir: Path, allow_patterns: list[str]) -> str:
        folder = cache_dir / name
        for file in filter_repo_objects([*files, *others], allow_patterns=allow_patterns):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tiny_base / (file if file in files else "config.json"), folder / file)
        return str(folder)

    monkeypatch.setattr("training_core.model_setup.snapshot_download", download)
    return tmp_path / "cache"


def test_fetched_tokenizer_loads_without_the_weights(hub: Path, tiny_base: Path) -> None:
    folder = fetch_tokenizer("some/base", str(hub))
    assert not list(folder.rglob("*.safetensors"))
    assert load_tokenizer(folder).get_vocab() == load_tokenizer(tiny_base).get_vocab()


@pytest.mark.parametrize("fetch", [fetch_tokenizer, fetch_base_model])
def test_local_base_is_used_in_place(fetch: Fetch, tiny_base: Path) -> None:
    assert fetch(str(tiny_base), None) == tiny_base.resolve()


def test_cache_key_of_rows_does_not_depend_on_weights(hub: Path, sample_rows: Path) -> None:
    config = RunConfig(dataset_path=str(sample_rows))
    alone = data_key(config, fetch_tokenizer("some/base", str(hub / "one")))
    base = fetch_base_model("some/base", str(hub / "other"))
    assert list(base.glob("*.safetensors"))
    assert data_key(config, base) == alone


def change(file: Path, **values: object) -> None:
    """Set fields of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda base: (base / "tokenizer.json").write_text("{}"), "cannot be read (KeyError"),
        (lambda base: change(base / "tokenizer.json", model={"type": "Nothing"}), "cannot be read (Exception"),
        (lambda base: change(base / "tokenizer_config.json", eos_token=5), "cannot be read (TypeError"),
        (lambda base: (base / "chat_template.jinja").write_bytes(b"\xe9"), "cannot be read (UnicodeDecodeError"),
        (lambda base: (base / "tokenizer.json").unlink(), "makes '' of"),
        (lambda base: change(base / "tokenizer_config.json", pad_token="<new>"), "has tokens up to "),
        (lambda base: change(base / "tokenizer_config.json", additional_special_tokens=["<a>", "<b>"]), "('<b>')"),
        (lambda base: change(base / "config.json", vocab_size=900), "the model has embeddings of 900"),
    ],
)
def test_tokenizer_that_cannot_be_used_is_named_and_not_the_rows(
    tiny_base: Path, sample_rows: Path, tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    damage(base)
    config = RunConfig(dataset_path=str(sample_rows), output_dir=str(tmp_path / "runs"))
    with pytest.raises(SettingsError) as caught:
        prepare_data(config, base)
    (problem,) = caught.value.problems
    assert problem.startswith(f"model_name: the tokenizer of '{base}' ")
    assert words in problem
    assert problem.endswith("; give a base with the tokenizer that it was released with")
    assert not list((tmp_path / "runs" / "datasets").glob("[!.]*")), "nothing half-written"


@pytest.mark.parametrize("missing", ["eos_token", "pad_token"])
def test_tokenizer_without_such_a_token_is_used(
    tiny_base: Path, sample_rows: Path, tmp_path: Path, missing: str
) -> None:
    """The template ends an answer, and packs are not padded."""
    base = shutil.copytree(tiny_base, tmp_path / "base")
    change(base / "tokenizer_config.json", **{missing: None})
    assert prepare_data(RunConfig(dataset_path=str(sample_rows), output_dir=str(tmp_path / "runs")), base)
