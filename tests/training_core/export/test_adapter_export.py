"""An exported adapter is one that vLLM applies, layer by layer, with the flags that its README gives."""

import itertools
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from export_samples import BASES, source_of
from safetensors.torch import load_file, save_file

from training_core.config import SettingsError
from training_core.export.adapter import MANIFEST_FILE, adapter_usage, write_served_adapter
from training_core.export.source import Source
from training_core.export.vllm_rules import adapter_problems, max_lora_rank, served_model

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def sources(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    folder = tmp_path_factory.mktemp("sources")
    return {name: source_of(name, tiny_base, folder / name) for name in BASES}


def exported(source: Source, folder: Path) -> Path:
    folder.mkdir()
    write_served_adapter(source, folder)
    return folder


@pytest.mark.parametrize("name", BASES)
def test_adapter_has_every_layer_as_released(name: str, sources: dict[str, Source], tmp_path: Path) -> None:
    source = sources[name]
    folder = exported(source, tmp_path / "export")
    released, found = load_file(source.base / "model.safetensors"), load_file(folder / WEIGHTS)
    layers = {re.sub(r"^base_model\.model\.|\.lora_[AB]\.weight$", "", key) for key in found}
    assert {f"{layer}.weight" for layer in layers} <= released.keys()
    assert found.keys() == load_file(source.adapter / WEIGHTS).keys()
    assert adapter_problems(folder, source.base) == []
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("Qwen/Tiny", "0123abc")
    assert str(source.base.parent) not in "".join(path.read_text() for path in folder.glob("*.json"))


def test_layers_have_the_names_of_vllms_modules(sources: dict[str, Source]) -> None:
    layer = "layers.0.linear_attn.in_proj_qkv"
    whole, text = served_model(sources["multimodal"].base), served_model(sources["qwen3_5"].base)
    assert whole.module(f"model.language_model.{layer}") == f"language_model.model.{layer}"
    assert text.module(f"model.language_model.{layer}") == text.module(f"model.{layer}") == f"model.{layer}"
    assert whole.adapts(f"model.language_model.{layer}")
    assert not whole.adapts(f"model.{layer}") and not whole.adapts("model.visual.blocks.0.attn.qkv")


def renamed(folder: Path, old: str, new: str) -> None:
    weights = {name.replace(old, new): weight for name, weight in load_file(folder / WEIGHTS).items()}
    save_file(weights, folder / WEIGHTS)


def test_prefix_that_vllm_ignores_is_a_problem(sources: dict[str, Source], tmp_path: Path) -> None:
    """It expects layers by the last part of their names, so that it loads these and applies none."""
    source = sources["multimodal"]
    folder = exported(source, tmp_path / "export")
    renamed(folder, ".language_model.", ".")
    (problem,) = adapter_problems(folder, source.base)
    assert "it would ignore 15 of 15 layers, the first is model.layers.0" in problem


def test_second_half_of_a_fused_projection_alone_is_a_problem(sources: dict[str, Source], tmp_path: Path) -> None:
    source = sources["qwen3_5"]
    folder = exported(source, tmp_path / "export")
    weights = {name: w for name, w in load_file(folder / WEIGHTS).items() if "in_proj_qkv." not in name}
    save_file(weights, folder / WEIGHTS)
    (problem,) = adapter_problems(folder, source.base)
    assert "loads no adapter with model.layers.0.linear_attn.in_proj_z and without in_proj_qkv" in problem


def test_answer_that_the_base_would_not_end_is_a_problem(sources: dict[str, Source], tmp_path: Path) -> None:
    source = sources["qwen3"]
    folder = exported(source, tmp_path / "export")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>", "<|endoftext|>"))
    (problem,) = adapter_problems(folder, source.base)
    assert "ends answers of this base at [2], the adapter ends them with 0" in problem


@pytest.mark.parametrize(("rank", "flag"), [(1, 1), (4, 8), (16, 16), (17, 32), (64, 64), (257, 320), (512, 512)])
def test_rank_flag_is_the_next_that_vllm_takes(rank: int, flag: int) -> None:
    assert max_lora_rank(rank) == flag


def test_rank_above_all_is_refused() -> None:
    with pytest.raises(SettingsError, match="adapters of rank 512 at most, found 513"):
        max_lora_rank(513)


def test_base_that_vllm_is_not_known_to_serve_is_refused(sources: dict[str, Source], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(SettingsError, match="found LlamaForCausalLM; export --format merged"):
        served_model(tmp_path)


def test_command_and_manifest_have_the_same_flags(sources: dict[str, Source], tmp_path: Path) -> None:
    source = sources["qwen2"]
    folder = exported(source, tmp_path / "export")
    usage = adapter_usage(source, folder)
    (block,) = re.findall(r"```\n(vllm.*?)```", usage, flags=re.DOTALL)
    program, serve, base, *flags = shlex.split(block.replace("\\\n", " "))
    service = yaml.safe_load((folder / MANIFEST_FILE).read_text())
    (container,) = service["spec"]["predictor"]["containers"]
    mounted = [re.sub(r"^\.(?=/)|(?<==)\.$", "/mnt/models", flag) for flag in flags]
    assert container["args"] == ["--model", base, *mounted]
    assert (program, serve, base, service["metadata"]["name"]) == ("vllm", "serve", "Qwen/Tiny", "policy-v1")
    pairs = dict(itertools.pairwise(flags))
    assert pairs["--max-lora-rank"] == "8" and pairs["--generation-config"] == "vllm"
    assert json.loads(pairs["--override-generation-config"]) == {"temperature": 0, "max_new_tokens": 24}
    assert json.loads(pairs["--default-chat-template-kwargs"]) == {"enable_thinking": False}


def test_base_in_a_folder_is_named_as_one(sources: dict[str, Source], tmp_path: Path) -> None:
    source = replace(sources["qwen2"], base_name="tiny_qwen", base_commit=None)
    usage = adapter_usage(source, exported(source, tmp_path / "export"))
    assert "--revision" not in usage and "`tiny_qwen` is the folder of the base; give its whole path" in usage
