"""An export has its name only when it decides as the registered adapter; until then its name says so."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from export_samples import write_random_adapter
from safetensors.torch import load_file, save_file

from training_core.config import RunConfig, SettingsError
from training_core.data_loader import prepare_data
from training_core.dataset.store import TrainingData, load_training_data
from training_core.export.formats import Format, formats
from training_core.export.judged_folder import give_name, write_judged
from training_core.export.source import Source
from training_core.export.verdict import FIT, NOT_JUDGED, UNFIT, Verdict
from training_core.folders import seal_digest
from training_core.model_setup import free_models


def export_judged(*what: Any) -> tuple[Path, Verdict]:
    written, verdict = write_judged(*what)
    return give_name(written, what[-1], verdict), verdict


TINY_QWEN = Path(__file__).parents[3] / "samples" / "tiny_qwen"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """The sample base, which answers in the right format, and an adapter that changes little."""
    folder = tmp_path_factory.mktemp("source")
    write_random_adapter(TINY_QWEN, folder / "adapter", scale=0.02)
    return Source("models:/policy/3", folder / "adapter", TINY_QWEN, "tiny_qwen", None, max_new_tokens=160)


@pytest.fixture(scope="module")
def config(sample_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    runs = str(tmp_path_factory.mktemp("runs"))
    return RunConfig(
        constrain="none",
        model_name=str(TINY_QWEN),
        dataset_path=str(sample_rows),
        output_dir=runs,
        max_eval_rows=4,
        eval_max_new_tokens=160,
        quantisation="none",
    )


@pytest.fixture(scope="module")
def data(config: RunConfig) -> TrainingData:
    return load_training_data(prepare_data(config, TINY_QWEN))


@pytest.fixture(scope="module")
def hasty(source: Source) -> Source:
    """Its answers are cut off at once, so that all are equal: no decision at all."""
    return replace(source, max_new_tokens=2)


@pytest.fixture(scope="module")
def hastily(config: RunConfig) -> RunConfig:
    return replace(config, max_eval_rows=2, eval_max_new_tokens=2)


def first_line(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8").splitlines()[0]


@pytest.mark.parametrize("kind", ["merged", "adapter"])
def test_export_that_decides_as_judged_has_its_name(
    kind: str, source: Source, data: TrainingData, config: RunConfig, tmp_path: Path
) -> None:
    folder, verdict = export_judged(source, kind, formats()[kind], data, config, tmp_path / "out")
    assert verdict.agreement and verdict.agreement.judged_usable > 0.5, "the rows must have decisions to compare"
    assert (verdict.outcome, verdict.problems, folder) == (FIT, [], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and seal_digest(folder)
    assert first_line(folder) == f"# fit to serve: models:/policy/3 as {kind}"
    written = json.loads((folder / "export.json").read_text())
    assert (written["outcome"], written["agreement"]["rows"], written["differing"]) == (FIT, 4, [])
    assert written["runtime"].startswith({"merged": "transformers 5.", "adapter": "peft 0."}[kind])


def with_other_weights(form: Format) -> Format:
    """As if the adapter had been merged into another base of the same shapes."""

    def write(source: Source, folder: Path) -> None:
        form.write(source, folder)
        weights = load_file(folder / "model.safetensors")
        mixed = {name: weight[torch.randperm(len(weight))] for name, weight in weights.items()}
        save_file(mixed, folder / "model.safetensors", metadata={"format": "pt"})

    return replace(form, write=write)


def test_export_of_another_base_is_rejected(
    source: Source, data: TrainingData, config: RunConfig, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    form = with_other_weights(formats()["merged"])
    folder, verdict = export_judged(source, "merged", form, data, config, tmp_path / "out")
    assert (verdict.outcome, folder) == (UNFIT, tmp_path / "out.rejected")
    assert not (tmp_path / "out").exists() and seal_digest(folder)
    assert first_line(folder) == "# NOT FIT TO SERVE: models:/policy/3 as merged"
    differing = json.loads((folder / "export.json").read_text())["differing"]
    assert len(differing) == len(verdict.agreement.differing) >= 1  # type: ignore[union-attr]
    assert differing[0].keys() == {"file", "line", "expected", "judged", "exported"}
    text = (folder / "README.md").read_text()
    assert "expected equal decisions in at least 99% of the rows" in text
    assert f"| {differing[0]['line']} |" in text
    record = json.loads(data.held_out["record"][0])
    assert record["input"]["customer_message"] not in text, "cases of customers do not travel with an export"


def test_loading_rule_of_the_server_rejects_equal_decisions(
    hasty: Source, data: TrainingData, hastily: RunConfig, tmp_path: Path
) -> None:
    form = replace(formats()["merged"], problems=lambda *_: ["the server would ignore it"])
    folder, verdict = export_judged(hasty, "merged", form, data, hastily, tmp_path / "out")
    assert (folder.name, verdict.problems) == ("out.rejected", ["the server would ignore it"])
    assert "; the server would ignore it" in (folder / "README.md").read_text()


def test_export_that_nothing_here_runs_is_not_judged(
    hasty: Source, data: TrainingData, hastily: RunConfig, tmp_path: Path
) -> None:
    form = replace(formats()["merged"], runs_on="no_such_runtime")
    folder, verdict = export_judged(hasty, "merged", form, data, hastily, tmp_path / "out")
    assert (verdict.outcome, folder) == (NOT_JUDGED, tmp_path / "out.unjudged")
    assert first_line(folder) == "# NOT JUDGED: models:/policy/3 as merged"
    assert (
        "no_such_runtime is not installed here" in (folder / "README.md").read_text()
        and not (tmp_path / "out").exists()
    )


def test_export_interrupted_while_judged_says_so(
    hasty: Source, data: TrainingData, hastily: RunConfig, tmp_path: Path
) -> None:
    def interrupted(*_: object) -> list[str]:
        raise KeyboardInterrupt

    form = replace(formats()["merged"], ask=interrupted)
    with pytest.raises(KeyboardInterrupt), free_models():
        export_judged(hasty, "merged", form, data, hastily, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out.unjudged"]
    assert first_line(tmp_path / "out.unjudged").startswith("# NOT JUDGED")
    folder, _ = export_judged(hasty, "merged", formats()["merged"], data, hastily, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [folder.name] == ["out"]


def test_folder_with_files_is_never_replaced(
    hasty: Source, data: TrainingData, hastily: RunConfig, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    for folder, what in ((tmp_path / "mine", "is there already"), (tmp_path / "no" / "such", "in one that exists")):
        with pytest.raises(SettingsError, match=what):
            export_judged(hasty, "merged", formats()["merged"], data, hastily, folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.txt"]


def test_rejected_export_replaces_an_earlier_one(
    hasty: Source, data: TrainingData, hastily: RunConfig, tmp_path: Path
) -> None:
    shutil.copytree(TINY_QWEN, tmp_path / "out.rejected")
    form = replace(formats()["merged"], problems=lambda *_: ["no"])
    folder, _ = export_judged(hasty, "merged", form, data, hastily, tmp_path / "out")
    assert first_line(folder).startswith("# NOT FIT TO SERVE")
