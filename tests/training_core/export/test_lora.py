"""An adapter that a server would ignore, or that belongs to another base, is refused before anything is written."""

import json
from pathlib import Path

import pytest
import torch
from export_samples import source_of
from safetensors.torch import load_file, save_file

from training_core.config import SettingsError
from training_core.export.lora import read_lora
from training_core.export.source import Source

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def sources(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    folder = tmp_path_factory.mktemp("sources")
    return {name: source_of(name, tiny_base, folder / name) for name in ("qwen3", "multimodal")}


def changed(source: Source, folder: Path, weights: dict[str, torch.Tensor], **config: object) -> Path:
    folder.mkdir()
    save_file(weights, folder / WEIGHTS)
    before = json.loads((source.adapter / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(before | config))
    return folder


def weights_of(source: Source) -> dict[str, torch.Tensor]:
    return load_file(source.adapter / WEIGHTS)


def test_every_layer_has_its_released_name(sources: dict[str, Source]) -> None:
    for source in sources.values():
        released = load_file(source.base / "model.safetensors")
        found = read_lora(source.adapter, source.base)
        assert len(found.factors) == len(weights_of(source)) / 2
        for layer, (a, b) in found.factors.items():
            assert released[f"{layer}.weight"].shape == (b.shape[0], a.shape[1])
        assert (found.rank, found.scale) == (4, 3.0)


def test_names_of_transformers_become_released_ones(sources: dict[str, Source], tmp_path: Path) -> None:
    source = sources["multimodal"]
    loose = {name.replace(".language_model.", "."): weight for name, weight in weights_of(source).items()}
    found = read_lora(changed(source, tmp_path / "a", loose), source.base)
    assert found.factors.keys() == read_lora(source.adapter, source.base).factors.keys()


def test_adapter_without_effect_is_refused(sources: dict[str, Source], tmp_path: Path) -> None:
    source = sources["qwen3"]
    zero = {name: weight * ("lora_B" not in name) for name, weight in weights_of(source).items()}
    with pytest.raises(SettingsError, match="every lora_B is zero, so that it changes nothing"):
        read_lora(changed(source, tmp_path / "a", zero), source.base)


def test_adapter_of_another_base_is_refused(sources: dict[str, Source]) -> None:
    with pytest.raises(SettingsError, match=r"it lacks \d+ of 14 layers of these shapes, the first is .* another base"):
        read_lora(sources["qwen3"].adapter, sources["multimodal"].base)


def test_unknown_prefix_is_refused(sources: dict[str, Source], tmp_path: Path) -> None:
    source = sources["qwen3"]
    moved = {name.replace(".model.layers.", ".model.decoder.layers."): w for name, w in weights_of(source).items()}
    with pytest.raises(SettingsError, match=r"lacks 14 of 14 layers .*, the first is model\.decoder\.layers\.0"):
        read_lora(changed(source, tmp_path / "a", moved), source.base)


def test_values_that_are_no_numbers_are_refused(sources: dict[str, Source], tmp_path: Path) -> None:
    source = sources["qwen3"]
    broken = weights_of(source)
    next(iter(broken.values()))[0, 0] = torch.nan
    with pytest.raises(SettingsError, match="no finite numbers"):
        read_lora(changed(source, tmp_path / "a", broken), source.base)


@pytest.mark.parametrize(
    "kind", [{"use_dora": True}, {"modules_to_save": ["embed_tokens"]}, {"bias": "all"}, {"rank_pattern": {"q": 2}}]
)
def test_other_kinds_of_adapters_are_refused(
    kind: dict[str, object], sources: dict[str, Source], tmp_path: Path
) -> None:
    source = sources["qwen3"]
    with pytest.raises(SettingsError, match=f"expected {next(iter(kind))} .*; exports are of plain LoRA adapters"):
        read_lora(changed(source, tmp_path / "a", weights_of(source), **kind), source.base)
