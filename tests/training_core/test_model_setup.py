"""The files of a base model that are downloaded, and when."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects

from training_core.config import RunConfig
from training_core.data_loader import data_key
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
