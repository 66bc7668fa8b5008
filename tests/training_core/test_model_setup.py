"""What is fetched of a base model, and when."""

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
    """The cache of a hub that knows one large base model."""
    files = [path.name for path in tiny_base.iterdir()]
    brought_along = ["model.safetensors.index.json", "merges.txt", "README.md", "onnx/config.json"]

    def download(name: str, *, cache_dir: Path, allow_patterns: list[str]) -> str:
        folder = cache_dir / name
        for file in filter_repo_objects([*files, *brought_along], allow_patterns=allow_patterns):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tiny_base / (file if file in files else "config.json"), folder / file)
        return str(folder)

    monkeypatch.setattr("training_core.model_setup.snapshot_download", download)
    return tmp_path / "cache"


def test_a_tokenizer_comes_without_the_weights_and_can_be_loaded(hub: Path, tiny_base: Path) -> None:
    folder = fetch_tokenizer("some/base", str(hub))
    assert not list(folder.rglob("*.safetensors"))
    assert load_tokenizer(folder).get_vocab() == load_tokenizer(tiny_base).get_vocab()


@pytest.mark.parametrize("fetch", [fetch_tokenizer, fetch_base_model])
def test_a_local_folder_is_its_own(fetch: Fetch, tiny_base: Path) -> None:
    assert fetch(str(tiny_base), None) == tiny_base.resolve()


def test_rows_prepared_with_the_tokenizer_alone_are_found_again_beside_the_weights(
    hub: Path, sample_rows: Path
) -> None:
    config = RunConfig(dataset_path=str(sample_rows))
    alone = data_key(config, fetch_tokenizer("some/base", str(hub / "one")))
    base = fetch_base_model("some/base", str(hub / "other"))
    assert list(base.glob("*.safetensors"))
    assert data_key(config, base) == alone
