"""Settings are checked all at once; logging, seed, cache and precision do what they promise and nothing else."""

import importlib.metadata
import json
import logging
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from training_core.base_weights import INDEX, WHOLE
from training_core.config import RunConfig, SettingsError
from training_core.utils import log_system_info, pick_precision, set_seed, setup_cache, setup_logging, validate_args


@pytest.fixture
def usable(tiny_base: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings with which nothing is wrong."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n", encoding="utf-8")
    return {"model_name": str(tiny_base), "dataset_path": str(rows), "output_dir": str(tmp_path / "out")}


def problems_of(values: dict[str, Any]) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        validate_args(RunConfig(**values))
    return caught.value.problems


def names_of(problems: list[str]) -> list[str]:
    return [problem.partition(":")[0] for problem in problems]


def test_validation_passes_usable_settings_and_writes_nothing(usable: dict[str, Any], tmp_path: Path) -> None:
    validate_args(RunConfig(**usable))
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_validation_reports_all_problems_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "base").mkdir()
    problems = problems_of(
        {
            "dataset_path": str(tmp_path / "base"),
            "eval_path": str(tmp_path / "nowhere.jsonl"),
            "model_name": str(tmp_path / "base"),
            "output_dir": str(tmp_path / "empty.jsonl" / "out"),
            "target_modules": "q_proj,,v_proj",
        }
    )
    assert set(names_of(problems)) == {"dataset_path", "eval_path", "model_name", "output_dir", "target_modules"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "empty.jsonl"]


@pytest.mark.parametrize("name", ["dataset_path", "eval_path"])
@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere.jsonl", "holds no file of rows"),
        ("folder", "holds no file of rows"),
        ("*.parquet", "holds no file of rows"),
        ("nosuch://bucket/rows.jsonl", "Protocol not known"),
    ],
)
def test_validation_needs_files_of_rows(
    usable: dict[str, Any], tmp_path: Path, name: str, path: str, words: str
) -> None:
    (tmp_path / "folder").mkdir()
    (problem,) = problems_of(usable | {name: path if "://" in path else str(tmp_path / path)})
    assert problem.startswith(f"{name}: ")
    assert words in problem


@pytest.mark.parametrize("lost", ["config.json", "tokenizer_config.json", "model.safetensors"])
def test_base_model_that_is_incomplete_names_the_missing_file(
    usable: dict[str, Any], tiny_base: Path, tmp_path: Path, lost: str
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for path in tiny_base.iterdir():
        if path.name != lost:
            (base / path.name).symlink_to(path)
    (problem,) = problems_of(usable | {"model_name": str(base)})
    assert problem.startswith("model_name: ")
    assert (lost if lost.endswith("json") else "safetensors") in problem


def test_base_model_with_cut_weights_is_rejected(usable: dict[str, Any], tiny_base: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_base, tmp_path / "base")
    weights = tmp_path / "base" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    (problem,) = problems_of(usable | {"model_name": str(tmp_path / "base")})
    assert problem.startswith("model_name: expected ")


def test_settings_that_the_base_cannot_follow_are_rejected(usable: dict[str, Any]) -> None:
    (problem,) = problems_of(usable | {"max_seq_length": 10**6})
    assert problem.startswith("max_seq_length: 1,000,000 is more than ")


@pytest.mark.parametrize("name", ["nobody/no-such-model", "./no/such/folder", "a b c", "x" * 300, "/etc/hostname"])
def test_base_model_that_does_not_exist_is_one_problem(usable: dict[str, Any], name: str) -> None:
    (problem,) = problems_of(usable | {"model_name": name})
    assert problem.startswith("model_name: ")


def test_base_model_that_does_not_exist_leaves_no_cache(usable: dict[str, Any], tmp_path: Path) -> None:
    problems_of(usable | {"model_name": "nobody/no-such-model", "cache_dir": str(tmp_path / "cache")})
    assert not (tmp_path / "cache").exists()


def test_base_model_without_chat_template_is_rejected(usable: dict[str, Any], tiny_base: Path, tmp_path: Path) -> None:
    """A pretrained base without instruction tuning is the likeliest wrong choice on the hub."""
    base = tmp_path / "base"
    base.mkdir()
    for path in tiny_base.iterdir():
        if path.suffix != ".jinja":
            (base / path.name).symlink_to(path)
    assert names_of(problems_of(usable | {"model_name": str(base)})) == ["model_name"]


@pytest.mark.parametrize("bad", ["query_proj", "embed_tokens", "mlp", "input_layernorm"])
def test_target_modules_must_be_linear_layers(usable: dict[str, Any], bad: str) -> None:
    (problem,) = problems_of(usable | {"target_modules": f"q_proj,{bad}"})
    assert problem.startswith(f"target_modules: '{bad}' ")


def test_target_modules_are_checked_on_a_hub_base(
    usable: dict[str, Any], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub gives config.json alone; the weights come later."""
    (tmp_path / "hub").mkdir()
    config = shutil.copy(tiny_base / "config.json", tmp_path / "hub")
    monkeypatch.setattr("training_core.utils.hf_hub_download", lambda *_, **__: config)
    validate_args(RunConfig(**usable | {"model_name": "some/base"}))
    assert names_of(problems_of(usable | {"model_name": "some/base", "target_modules": "mlp"})) == ["target_modules"]


@pytest.mark.parametrize("left_out", ["shard", "index", "index and first shard"])
def test_interrupted_download_of_a_hub_base_is_no_problem(
    usable: dict[str, Any], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_out: str
) -> None:
    """The run itself downloads the rest."""
    hub = tmp_path / "hub"
    AutoModelForCausalLM.from_pretrained(tiny_base).save_pretrained(hub, max_shard_size="100KB")
    shards = sorted(hub.glob("*.safetensors"))
    assert len(shards) > 1
    lost = {"shard": shards[1:], "index": [hub / INDEX, *shards[1:]], "index and first shard": [hub / INDEX, shards[0]]}
    for file in lost[left_out]:
        file.unlink()
    monkeypatch.setattr("training_core.utils.hf_hub_download", lambda *_, **__: str(hub / "config.json"))
    validate_args(RunConfig(**usable | {"model_name": "some/base"}))


def test_hub_base_that_is_there_is_checked_with_its_weights(
    usable: dict[str, Any], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = shutil.copytree(tiny_base, tmp_path / "hub")
    found = load_file(hub / WHOLE)
    save_file({name: w for name, w in found.items() if "norm" not in name}, hub / WHOLE, metadata={"format": "pt"})
    monkeypatch.setattr("training_core.utils.hf_hub_download", lambda *_, **__: str(hub / "config.json"))
    (problem,) = problems_of(usable | {"model_name": "some/base"})
    assert "the weights of 'some/base' lack " in problem


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_base_model_with_broken_json_is_rejected(
    usable: dict[str, Any], tiny_base: Path, tmp_path: Path, file: str
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    (base / file).write_text('{"model_type": ')
    (problem,) = problems_of(usable | {"model_name": str(base)})
    assert problem.startswith("model_name: ") and file in problem


def test_base_model_of_unknown_type_is_rejected(usable: dict[str, Any], tiny_base: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    (base / "config.json").write_text('{"model_type": "unheard-of"}')
    (problem,) = problems_of(usable | {"model_name": str(base)})
    assert "cannot build a model" in problem and "unheard-of" in problem


@pytest.mark.parametrize("eval_path", [None, ""])
def test_validation_needs_rows_to_evaluate_on(usable: dict[str, Any], eval_path: str | None) -> None:
    assert names_of(problems_of(usable | {"val_split": 0, "eval_path": eval_path})) == ["val_split"]


def test_eval_path_must_differ_from_dataset_path(usable: dict[str, Any], tmp_path: Path) -> None:
    """Whatever the file is called the second time."""
    (tmp_path / "link.jsonl").symlink_to(usable["dataset_path"])
    for same in (usable["dataset_path"], f"{tmp_path}/./rows.jsonl", str(tmp_path / "link.jsonl")):
        assert names_of(problems_of(usable | {"eval_path": same})) == ["eval_path"]


def test_output_dir_that_cannot_be_created_is_rejected(usable: dict[str, Any], tmp_path: Path) -> None:
    assert names_of(problems_of(usable | {"output_dir": usable["dataset_path"]})) == ["output_dir"]
    validate_args(RunConfig(**usable | {"output_dir": str(tmp_path / "a" / "b" / "c")}))


def test_logging_shows_only_the_core_and_once(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = (root.level, root.handlers[:])
    setup_logging()
    setup_logging()
    logging.getLogger("training_core.somewhere").info("one line from the core")
    logging.getLogger("elsewhere").info("one line from elsewhere")
    shown = capsys.readouterr()
    assert (shown.out + shown.err).count("one line from the core") == 1
    assert "elsewhere" not in shown.out + shown.err
    assert (root.level, root.handlers) == before


def test_logging_shows_square_brackets_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    """Paths and policies hold square brackets, which rich could take for its own."""
    setup_logging()
    logging.getLogger("training_core.somewhere").info("rows[bold].jsonl [/x]")
    shown = capsys.readouterr()
    assert "rows[bold].jsonl [/x]" in shown.out + shown.err


def test_seed_sets_python_numpy_and_torch() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(1))

    set_seed(5)
    first = draw()
    set_seed(5)
    assert draw() == first
    set_seed(6)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_seed_may_have_any_value_of_the_setting(seed: int) -> None:
    set_seed(RunConfig(seed=seed).seed)


def test_cache_folder_is_created_without_touching_the_environment(tmp_path: Path) -> None:
    before = dict(os.environ)
    assert setup_cache(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()
    assert setup_cache(None) is None
    assert dict(os.environ) == before


def test_precision_says_why_it_was_chosen() -> None:
    precision = pick_precision()
    assert precision == pick_precision()
    assert precision.reason.startswith(f"{precision.name}: ")
    assert precision.dtype == {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision.name]
    if not torch.cuda.is_available():
        assert precision.name == "fp32"


def use_card(monkeypatch: pytest.MonkeyPatch, *, bf16: bool) -> None:
    """Let torch describe a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)


def test_precision_of_the_settings_wins_over_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as machine:
        machine.setattr(torch.cuda, "is_available", lambda: False)
        assert [pick_precision(wanted).name for wanted in ("auto", "bf16", "fp32")] == ["fp32", "bf16", "fp32"]
        with pytest.raises(SettingsError, match="precision: fp16 needs a GPU"):
            pick_precision("fp16")
    use_card(monkeypatch, bf16=True)
    assert [pick_precision(wanted).name for wanted in ("auto", "fp16", "fp32")] == ["bf16", "fp16", "fp32"]
    assert "T4" in pick_precision("fp16").reason
    use_card(monkeypatch, bf16=False)
    assert pick_precision().name == "fp16"
    with pytest.raises(SettingsError, match=r"T4 .* does not compute in bf16; set precision auto"):
        pick_precision("bf16")


def test_system_facts_hold_the_versions_of_libraries() -> None:
    facts = log_system_info()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["torch"] == importlib.metadata.version("torch")
    assert {"python", "platform", "gpu", "transformers", "peft", "trl", "bitsandbytes"} <= facts.keys()


@pytest.mark.parametrize("name", ["out?1", "out#1", "50%", "a;b", "a\u200bb"])
def test_output_dir_cannot_have_characters_of_addresses(usable: dict[str, Any], tmp_path: Path, name: str) -> None:
    (problem,) = problems_of(usable | {"output_dir": str(tmp_path / name / "runs")})
    assert problem.startswith("output_dir: ")
    assert ascii(next(sign for sign in name if sign in "?#%;\u200b")) in problem


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("s3://bucket/runs", "is the address of a store; give a folder of this machine"),
        ("file:///tmp/runs", "is the address of a store; give a folder of this machine"),
        ("~/runs", "begins with ~, which only a shell reads as your home"),
        ("~", "begins with ~, which only a shell reads as your home"),
        ("x" * 300, "File name too long; give another folder"),
        ("runs/" + "x" * 300 + "/deep", "File name too long; give another folder"),
        ("x/" * 3_000, "File name too long; give another folder"),
        ("/dev/null/runs", "/dev/null is a file; give another folder"),
    ],
)
def test_output_dir_that_cannot_be_a_folder_is_one_problem(usable: dict[str, Any], name: str, words: str) -> None:
    (problem,) = problems_of(usable | {"output_dir": name})
    assert problem.startswith("output_dir: ")
    assert words in problem
    assert len(problem) < 400


def test_output_dir_of_links_in_a_circle_is_one_problem(usable: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    (problem,) = problems_of(usable | {"output_dir": str(tmp_path / "one" / "runs")})
    assert problem.startswith("output_dir: ") and "give another folder" in problem


@pytest.mark.parametrize("output", [".", "runs", "deep/runs"])
def test_output_dir_in_the_folder_of_rows_is_rejected(usable: dict[str, Any], tmp_path: Path, output: str) -> None:
    settings = usable | {"dataset_path": str(tmp_path), "output_dir": str(tmp_path / output)}
    (problem,) = problems_of(settings)
    assert problem.startswith("output_dir: ")
    assert "folder of rows" in problem


def test_precision_that_this_machine_lacks_is_a_problem_here_only(usable: dict[str, Any]) -> None:
    (problem,) = problems_of(usable | {"precision": "fp16"})
    assert problem.startswith("precision: fp16 needs a GPU")
    validate_args(RunConfig(**usable | {"precision": "fp16", "train_on": "train-flow/gpu"}))
