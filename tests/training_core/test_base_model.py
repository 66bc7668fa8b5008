"""The layers that get an adapter are known, and bad names rejected, before any weight is loaded."""

import json
from pathlib import Path

import pytest
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import ARCHITECTURES, tiny_model, tiny_multimodal_model
from torch import nn

from training_core.base_model import adapted_layers, linear_layers, load_skeleton
from training_core.config import RunConfig, SettingsError
from training_core.model_setup import load_model_and_tokenizer
from training_core.training.disk_space import adapter_parameters

EVERY_NAME = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base of which only config.json is present."""
    tiny_model("qwen2", vocab_size=64).config.save_pretrained(tmp_path)
    return tmp_path


def problems_of(base: Path, names: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        adapted_layers(RunConfig(model_name="some/base", target_modules=names), base)
    return caught.value.problems


def peft_layers(model: PeftModel) -> set[str]:
    return {name.removeprefix("base_model.model.") for name in model.targeted_module_names}


@pytest.mark.parametrize(
    "names",
    ["auto", "q_proj,down_proj", "self_attn.v_proj", "model.layers.1.mlp.up_proj", "layers.0.mlp.up_proj,k_proj"],
)
def test_adapted_layers_are_those_that_peft_adapts(base: Path, names: str) -> None:
    config = RunConfig(target_modules=names)
    targets = EVERY_NAME if names == "auto" else names.split(",")
    model = get_peft_model(tiny_model("qwen2", vocab_size=64), LoraConfig(r=config.lora_r, target_modules=targets))
    assert adapted_layers(config, base).keys() == peft_layers(model)
    assert adapter_parameters(config, base) == model.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_auto_adapts_every_linear_layer(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture, vocab_size=64)
    model.config.save_pretrained(tmp_path)
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert adapted_layers(RunConfig(), tmp_path).keys() == linear_layers(tmp_path).keys() == linear - {"lm_head"}


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "qwen3_5"])
def test_linear_layers_are_those_of_all_linear_in_peft(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture, vocab_size=64)
    model.config.save_pretrained(tmp_path)
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear"))
    assert linear_layers(tmp_path).keys() == peft_layers(adapted)


def test_auto_adapts_every_projection_of_gated_delta_nets(tmp_path: Path) -> None:
    tiny_multimodal_model(vocab_size=64).config.save_pretrained(tmp_path)
    adapted = adapted_layers(RunConfig(), tmp_path)
    assert {name for name in adapted if "linear_attn" in name} == {
        f"model.layers.0.linear_attn.{name}"
        for name in ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj")
    }
    assert not any("visual" in name for name in adapted)


def test_adapted_layers_of_a_loaded_base_are_the_same(tiny_base: Path) -> None:
    config = RunConfig(model_name=str(tiny_base), target_modules="q_proj,mlp.up_proj")
    assert adapted_layers(config, tiny_base).keys() == peft_layers(load_model_and_tokenizer(config).model)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("query_proj", "matches no layer"),
        ("q_pro", "matches no layer"),
        ("all-linear", "matches no layer"),
        ("embed_tokens", "is an embedding"),
        ("model.embed_tokens", "is an embedding"),
        ("input_layernorm", "is a norm"),
        ("mlp", "is a block"),
        ("layers", "is a block"),
        ("model", "is a block"),
        ("layers.0", "is a block"),
        ("lm_head", "is the output head"),
        ("act_fn", "is a SiLUActivation"),
    ],
)
def test_target_module_must_be_a_linear_layer(base: Path, name: str, words: str) -> None:
    (problem,) = problems_of(base, f"q_proj,{name}")
    assert problem == (
        f"target_modules: {name!r} {words} of 'some/base'; its linear layers: "
        "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    )


def test_target_modules_get_one_problem_for_each_bad_name(base: Path) -> None:
    problems = problems_of(base, "nothing,q_proj,mlp,embed_tokens")
    assert [problem.split("'")[1] for problem in problems] == ["nothing", "mlp", "embed_tokens"]


def test_base_without_linear_layers_is_rejected(base: Path) -> None:
    (base / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 2}))
    assert problems_of(base, "auto") == ["model_name: 'some/base' has no linear layer that could have an adapter"]


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "null", "{}", '{"model_type": "unheard-of"}', '{"model_type": "t5"}', '{"model_type": 5}'),
        *('{"model_type": "qwen2", "hidden_size": "wide"}', '{"model_type": "qwen2", "hidden_size": -1}'),
        *(
            '{"model_type": "qwen2", "num_attention_heads": 0}',
            '{"model_type": "own", "auto_map": {"AutoConfig": "a.B"}}',
        ),
    ],
)
def test_config_that_gives_no_model_is_one_problem(base: Path, content: str) -> None:
    (base / "config.json").write_text(content)
    (problem,) = problems_of(base, "auto")
    assert problem.startswith(f"model_name: cannot build a model from {base / 'config.json'}: ")
    assert "\n" not in problem and len(problem) < 500


def test_missing_config_is_one_problem(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path / "nowhere", "auto")
    assert "FileNotFoundError" in problem


def test_skeleton_has_no_weights_and_is_built_once(base: Path) -> None:
    skeleton = load_skeleton(base)
    assert {weight.device.type for weight in skeleton.parameters()} == {"meta"}
    assert load_skeleton(base) is skeleton


def test_skeleton_follows_a_changed_config(base: Path) -> None:
    before = load_skeleton(base)
    (base / "config.json").write_text(
        (base / "config.json").read_text().replace('"vocab_size": 64', '"vocab_size": 65')
    )
    assert (before.config.vocab_size, load_skeleton(base).config.vocab_size) == (64, 65)
