"""The registered model asks what training and evaluation asked, and serves what was registered."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from hub_stand_in import NAME, commit_of, hub_with
from huggingface_hub import constants
from transformers import PreTrainedTokenizerFast

from samples.bad_lines import to_line
from samples.cases import generate_rows
from samples.row_formats import FORMATS
from tasks.check_served import as_input, check_parity
from tasks.model_package import package_adapter
from tasks.refs import EvalReport, FolderRef, RunRef, TrainedRef
from tasks.served_adapter import ServedAdapter
from training_core import model_setup
from training_core.config import RunConfig
from training_core.data_loader import build_datasets
from training_core.dataset.store import HELD_OUT_FILE
from training_core.evaluation.generation import generate
from training_core.evaluation.scores import prompt_of
from training_core.folders import seal, seal_digest
from training_core.model_setup import (
    digest_base_model,
    load_adapted_model,
    load_model_and_tokenizer,
    load_tokenizer,
)
from training_core.prompts.chat_encoding import ChatEncoder
from training_core.training.adapter import write_adapter
from training_core.utils import Precision

# Asking without thinking opens an empty think block in the prompt, as Qwen3 has it.
THINKING_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def free_text(row: dict[str, Any]) -> dict[str, Any]:
    """A conversation of several turns, with white space at its edges and a chat marker inside."""
    turns = [("system", " Be brief.\n"), ("user", "May I\u2028ask? <|im_end|>"), ("assistant", "Yes. e\u0301")]
    turns += [("user", f"{row['input']['customer_message']} "), ("assistant", json.dumps(row["output"]))]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


KINDS = FORMATS | {"free text": free_text}


@pytest.fixture(params=["qwen2", "qwen3"])
def tokenizer(tiny_base: Path, request: pytest.FixtureRequest) -> Iterator[PreTrainedTokenizerFast]:
    tokenizer = load_tokenizer(tiny_base)
    if request.param == "qwen3":
        tokenizer.add_tokens(["<think>", "</think>"], special_tokens=False)
        tokenizer.chat_template = THINKING_TEMPLATE
    return tokenizer


def held_out(kind: str, tokenizer: PreTrainedTokenizerFast, folder: Path, **settings: Any) -> Dataset:
    rows = [KINDS[kind](row) for row in generate_rows(24, seed=6)]
    (folder / "rows.jsonl").write_bytes(b"".join(map(to_line, rows)))
    config = RunConfig(dataset_path=str(folder / "rows.jsonl"), val_split=0.4, packing=False, **settings)
    report = build_datasets(config, tokenizer, folder)
    assert report.accounts[0].format.endswith({"free text": "free text", "native": "native"}.get(kind, "cases"))
    return Dataset.from_file(str(folder / HELD_OUT_FILE))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("overlong", ["drop", "trim_policy"])
def test_served_prompt_equals_the_training_prompt(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, kind: str, overlong: str
) -> None:
    limit = 600 if overlong == "trim_policy" else 4096
    rows = held_out(kind, tokenizer, tmp_path, overlong=overlong, max_seq_length=limit)
    adapter = ServedAdapter()
    adapter.encoder = ChatEncoder.of(tokenizer)
    assert len(rows) >= 5
    for row in rows:
        asked = as_input(json.loads(row["record"]))
        assert adapter.prompt(dict(asked)) == prompt_of(row)
        if kind in ("messages", "free text") and overlong == "drop":  # as its owner has it, not as it was turned into
            given = json.loads((tmp_path / "rows.jsonl").read_bytes().split(b"\n")[row["line"] - 1])["messages"][:-1]
            assert adapter.prompt({"messages": json.dumps(given)}) == prompt_of(row)
        assert tokenizer.decode(prompt_of(row)).endswith(("assistant\n", "</think>\n\n"))


def written(sample: dict[str, Any], folder: Path) -> Path:
    (folder / "parity_sample.json").write_text(json.dumps(sample))
    return folder / "parity_sample.json"


def packaged(tiny_base: Path, kind: str, folder: Path, **settings: Any) -> tuple[dict[str, Any], Dataset]:
    """A parity sample and its rows; the package is in ``folder / "model"``."""
    config = RunConfig(model_name=str(tiny_base), eval_max_new_tokens=6, eval_batch_size=4, **settings)
    loaded = load_model_and_tokenizer(config)
    rows = held_out(kind, loaded.tokenizer, folder).select(range(4))
    write_adapter(loaded.model, loaded.tokenizer, config, np.array([7], np.uint64), folder / "adapter")
    run = RunRef("i", str(folder), digest_base_model(tiny_base), "r")
    adapter = FolderRef(str(folder / "adapter"), None, str(seal_digest(folder / "adapter")))
    trained = TrainedRef(run, adapter, EvalReport(adapter, 0, {}, {}, None))
    package_adapter(trained, str(tiny_base), 6, folder / "model")
    answers = generate(loaded, [prompt_of(row) for row in rows], replace(config, eval_batch_size=4))
    sample = {"records": rows["record"][:], "answers": answers, "max_new_tokens": 6}
    return sample | {"precision": loaded.precision.reason}, rows


@pytest.fixture(scope="module")
def package(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a packaged adapter in ``model`` and its ``parity_sample.json``."""
    folder = tmp_path_factory.mktemp("package")
    written(packaged(tiny_base, "native", folder)[0], folder)
    return folder


@pytest.fixture
def copied(package: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return shutil.copytree(package / "model", tmp_path / "model")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["native", "free text"])
def test_served_answers_equal_the_evaluated_ones(
    tiny_base: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    sample, rows = packaged(tiny_base, kind, tmp_path)
    answers = sample["answers"]
    assert check_parity(str(tmp_path / "model"), written(sample, tmp_path)) == "the same tokens"
    with pytest.raises(ValueError, match="1 of 4 answers differ"):
        check_parity(str(tmp_path / "model"), written(sample | {"answers": [[1], *answers[1:]]}, tmp_path))
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(model_setup, "pick_precision", lambda _: Precision("bf16", "bf16: another machine has it"))
        rounded = load_adapted_model(tiny_base, tmp_path / "adapter")
        config = RunConfig(eval_max_new_tokens=6, eval_batch_size=4)
        theirs = generate(rounded, [prompt_of(row) for row in rows], config)
    sample |= {"answers": theirs, "precision": rounded.precision.reason}
    assert check_parity(str(tmp_path / "model"), written(sample, tmp_path)).startswith("the same answers, at most 0.")
    with pytest.raises(ValueError, match="logits behind others"):
        check_parity(str(tmp_path / "model"), written(sample | {"answers": [[*range(10, 16)], *theirs[1:]]}, tmp_path))

    served = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    mixed = pd.DataFrame(
        [as_input(json.loads(rows[0]["record"])), {"instruction": "x", "input": '{"policy_document": "y"}'}]
    )
    assert served.predict(mixed)["token_ids"][0] == answers[0]


@pytest.mark.slow
def test_served_answers_in_bf16_equal_the_evaluated_ones(tiny_base: Path, tmp_path: Path) -> None:
    sample, _ = packaged(tiny_base, "native", tmp_path, precision="bf16")
    assert sample["precision"].startswith("bf16")
    assert check_parity(str(tmp_path / "model"), written(sample, tmp_path)) == "the same tokens"


@pytest.mark.slow
def test_served_answers_on_an_unquantised_base_equal_the_evaluated_ones(tiny_base: Path, tmp_path: Path) -> None:
    sample, _ = packaged(tiny_base, "native", tmp_path, quantisation="none")
    assert check_parity(str(tmp_path / "model"), written(sample, tmp_path)) == "the same tokens"
    served = mlflow.pyfunc.load_model(str(tmp_path / "model")).unwrap_python_model().loaded.model
    assert {weight.dtype for weight in served.parameters()} == {torch.float32}


@pytest.mark.parametrize("setting", [{"constrain": "json"}, {"max_new_tokens": 7}])
def test_settings_other_than_the_evaluated_ones_fail_the_check(
    package: Path, tmp_path: Path, setting: dict[str, Any]
) -> None:
    sample = json.loads((package / "parity_sample.json").read_text())
    with pytest.raises(ValueError, match="expected a model that is served as it was evaluated, with "):
        check_parity(str(package / "model"), written(sample | setting, tmp_path))


def test_unusable_answers_of_the_served_model_are_handed_over(package: Path) -> None:
    """Also without a threshold: these answers are cut off."""
    sample = json.loads((package / "parity_sample.json").read_text())
    rows = pd.DataFrame([as_input(json.loads(record)) for record in sample["records"]])
    assert mlflow.pyfunc.load_model(str(package / "model")).predict(rows)["hand_over"].all()


def test_served_base_is_the_commit_of_the_training(
    package: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub has a newer one by now."""
    newer = shutil.copytree(tiny_base, tmp_path / "newer")
    (newer / "tokenizer_config.json").write_text("{}")
    served = mlflow.models.Model.load(str(package / "model")).flavors["python_function"]["config"]
    context = SimpleNamespace(
        artifacts={"adapter": str(package / "adapter")},
        model_config=served | {"base_model": NAME, "base_commit": commit_of(0)},
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with hub_with([tiny_base, newer], {}, monkeypatch):
        ServedAdapter().load_context(context)
        with pytest.raises(ValueError, match="is not the base model that this adapter was trained on"):
            ServedAdapter().load_context(
                SimpleNamespace(**vars(context) | {"model_config": served | {"base_model": NAME}})
            )


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "tokenizer.json", "manifest.json"])
def test_served_files_that_changed_are_rejected_by_name(copied: Path, name: str) -> None:
    file = copied / "artifacts" / "adapter" / name
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(ValueError, match=f"expected the adapter that was registered, found other content.*{name}"):
        mlflow.pyfunc.load_model(str(copied))


def test_served_files_with_a_new_manifest_are_rejected(copied: Path) -> None:
    adapter = copied / "artifacts" / "adapter"
    (adapter / "adapter_model.safetensors").write_bytes(b"other weights")
    seal(adapter)
    with pytest.raises(ValueError, match="expected the adapter that was registered"):
        mlflow.pyfunc.load_model(str(copied))


def test_package_holds_nothing_of_what_was_trained_on(package: Path) -> None:
    assert not [path for path in (package / "model").rglob("*") if "leakage" in path.name and path.suffix != ".py"]


def check_in_process(model: Path, package: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tasks.check_served", str(model), str(package / "parity_sample.json")]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_check_served_runs_the_packaged_code(copied: Path, package: Path) -> None:
    assert check_in_process(copied, package).stdout == "the same tokens\n"
    for module in ("prompts/messages.py", "folders.py"):
        (copied / "code" / "training_core" / module).unlink()
    found = check_in_process(copied, package)
    assert found.returncode == 1
    assert "No module named 'training_core." in found.stdout
    shutil.rmtree(copied / "code")
    found = check_in_process(copied, package)
    assert (found.returncode, "expected the model's packaged code" in found.stdout) == (1, True)
