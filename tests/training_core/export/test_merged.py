"""A merged model computes what base and adapter compute, and loads with plain transformers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from export_samples import BASES, build, source_of, write_random_adapter
from safetensors.torch import load_file, save_file
from tiny_models import write_base
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from training_core.config import SettingsError
from training_core.export.adapter import write_served_adapter
from training_core.export.choices import WEIGHTS
from training_core.export.lora import read_lora
from training_core.export.merged import write_merged
from training_core.export.source import Source
from training_core.model_setup import load_adapted_model

TOKENS = torch.arange(5, 70)[None]


@pytest.fixture(scope="module", params=BASES)
def source(request: pytest.FixtureRequest, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Source:
    return source_of(request.param, tiny_base, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def folder(source: Source) -> Path:
    target = source.base.parent / "merged"
    target.mkdir()
    write_merged(source, target)
    return target


@torch.inference_mode()
def test_merged_model_computes_as_base_and_adapter(source: Source, folder: Path) -> None:
    loaded = load_adapted_model(source.base, source.adapter)
    expected = loaded.model(TOKENS).logits
    with loaded.model.disable_adapter():
        without = loaded.model(TOKENS).logits
    found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(TOKENS).logits
    # bf16 keeps 8 bits of a weight; the adapter changes the logits a hundred times as much.
    assert (found - expected).abs().max() < 0.01 * (without - expected).abs().max()


def test_merged_weights_are_rounded_once(source: Source, folder: Path) -> None:
    lora, released, found = (
        read_lora(source.adapter, source.base),
        load_file(source.base / "model.safetensors"),
        load_file(folder / "model.safetensors"),
    )
    for name, weight in released.items():
        exact = weight.double()
        if pair := lora.factors.get(name.removesuffix(".weight")):
            exact = exact + lora.scale * pair[1].double() @ pair[0].double()
        step = 2.0**-8 * exact.abs().clamp(min=1e-30)  # half a bf16 step, and what fp32 adds
        assert ((found[name].double() - exact).abs() <= step * 1.01).all(), name


def test_merged_names_and_shapes_are_the_released_ones(source: Source, folder: Path) -> None:
    released, found = (load_file(place / "model.safetensors") for place in (source.base, folder))
    assert {n: w.shape for n, w in found.items()} == {n: w.shape for n, w in released.items()}
    assert {weight.dtype for weight in found.values()} == {torch.bfloat16}
    configs = [json.loads((place / "config.json").read_text()) for place in (source.base, folder)]
    assert [config["architectures"] for config in configs] == [configs[0]["architectures"]] * 2
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16


def test_merged_model_decodes_as_judged(source: Source, folder: Path) -> None:
    settings = GenerationConfig.from_pretrained(folder)
    end = AutoTokenizer.from_pretrained(folder).eos_token_id
    assert (settings.do_sample, settings.temperature, settings.max_new_tokens) == (False, 0.0, source.max_new_tokens)
    assert (settings.eos_token_id, settings.repetition_penalty) == (end, None)


@torch.inference_mode()
def test_merged_over_four_bits_computes_as_it_was_trained(source: Source, tmp_path: Path) -> None:
    write_random_adapter(source.base, tmp_path / "adapter", quantisation="nf4")
    trained = replace(source, adapter=tmp_path / "adapter")
    expected = load_adapted_model(source.base, trained.adapter).model(TOKENS).logits
    differences = {}
    for weights in WEIGHTS:
        target = tmp_path / weights
        target.mkdir()
        write_merged(replace(trained, weights=weights), target)
        found = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)(TOKENS).logits
        differences[weights] = (found - expected).abs().max()
    assert differences["nf4"] < 0.2 * differences["released"]


def test_four_bits_that_were_not_trained_over_are_refused(source: Source, tmp_path: Path) -> None:
    for write, what in ((write_merged, "this one was not"), (write_served_adapter, "stays as released")):
        with pytest.raises(SettingsError, match=what):
            write(replace(source, weights="nf4"), tmp_path)


@pytest.fixture
def sharded(tiny_base: Path, tmp_path: Path) -> Source:
    """A base in 16 bits but for its decays, in several files, with a vocabulary of its own."""
    base = tmp_path / "base"
    model = write_base(build("qwen3_5"), tiny_base, base).to(torch.bfloat16)
    model.save_pretrained(base, max_shard_size="80KB")
    for file in base.glob("*.safetensors"):
        weights = {name: w.float() if name.endswith("A_log") else w for name, w in load_file(file).items()}
        save_file(weights, file, metadata={"format": "pt"})
    (base / "model.safetensors").unlink(missing_ok=True)
    write_random_adapter(base, tmp_path / "adapter")
    return Source("models:/policy/3", tmp_path / "adapter", base, "Qwen/Tiny", None, max_new_tokens=24)


def test_files_of_a_divided_base_stay_divided(sharded: Source, tmp_path: Path) -> None:
    target = tmp_path / "merged"
    target.mkdir()
    write_merged(sharded, target)
    before, after = ({path.name for path in place.glob("*.safetensors*")} for place in (sharded.base, target))
    assert before == after and len(after) > 2
    index = json.loads((target / "model.safetensors.index.json").read_text())
    weights = {name: w for path in target.glob("*.safetensors") for name, w in load_file(path).items()}
    assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in weights.values())
    assert index["weight_map"].keys() == weights.keys()
    assert {w.dtype for name, w in weights.items() if name.endswith("A_log")} == {torch.float32}
    assert {w.dtype for name, w in weights.items() if not name.endswith("A_log")} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(target).dtype == torch.bfloat16


def test_template_in_the_settings_of_a_tokenizer_is_replaced(tiny_base: Path, tmp_path: Path) -> None:
    source = source_of("qwen2", tiny_base, tmp_path)
    settings = source.base / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"chat_template": "{{ 'think' }}"}))
    target = tmp_path / "merged"
    target.mkdir()
    write_merged(source, target)
    found = AutoTokenizer.from_pretrained(target).chat_template
    assert found == source.tokenizer.chat_template != "{{ 'think' }}"
