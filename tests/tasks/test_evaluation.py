"""An adapter is evaluated on rows it was not trained on, with whatever seed it was trained."""

import json
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from prefect.logging import disable_run_logger

from tasks import evaluation, training
from tasks.artifact_store import publish
from tasks.evaluation import evaluate
from tasks.refs import DatasetRef, EvalReport, FolderRef, RegisteredRef, RunRef, TrainedRef
from tasks.registration import describe_version
from tasks.training import open_run
from training_core.config import RunConfig, SettingsError
from training_core.data_loader import prepare_data
from training_core.dataset.encoding import leakage_keys
from training_core.dataset.store import TrainingData, load_training_data
from training_core.evaluation.comparison import Comparison, EvaluatedModel, compare_models
from training_core.evaluation.evidence import load_left_out
from training_core.model_setup import LoadedModel, load_model_and_tokenizer
from training_core.training.adapter import write_adapter
from training_core.training.fingerprint import digest_rows


@pytest.fixture
def settings(config: RunConfig, tiny_base: Path, sample_rows: Path) -> RunConfig:
    few = {"max_seq_length": 4096, "eval_max_new_tokens": 1, "val_split": 0.2, "constrain": "none"}
    return replace(config, model_name=str(tiny_base), dataset_path=str(sample_rows), **few)


@pytest.fixture(scope="module")
def loaded(tiny_base: Path) -> LoadedModel:
    return load_model_and_tokenizer(RunConfig(model_name=str(tiny_base)))


def rows_of(settings: RunConfig) -> tuple[TrainingData, DatasetRef]:
    folder = prepare_data(settings, Path(settings.model_name))
    data = load_training_data(folder)
    return data, DatasetRef(publish(folder), digest_rows(data.train), len(data.train), len(data.held_out), "")


def adapter_of(loaded: LoadedModel, settings: RunConfig, leakage_keys: np.ndarray, run: Path) -> FolderRef:
    write_adapter(loaded.model, loaded.tokenizer, settings, leakage_keys, run / "adapter")
    return publish(run / "adapter")


def evaluated(settings: RunConfig, run: Path, adapter: FolderRef, dataset: DatasetRef) -> tuple[EvalReport, int]:
    with disable_run_logger():
        report = evaluate.fn(settings, RunRef(run.name, str(run), "", ""), adapter, dataset)
    return report, load_left_out(Path(report.folder.path))


@pytest.mark.parametrize("knows", ["candidate", "champion"])
def test_evaluation_leaves_out_rows_that_were_trained_on(
    settings: RunConfig, loaded: LoadedModel, knows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = rows_of(replace(settings, split_seed=42))
    now, dataset = rows_of(replace(settings, split_seed=43))
    runs = {name: Path(settings.output_dir) / f"{knows} knows" / name for name in ("candidate", "champion")}
    adapters = {
        name: adapter_of(loaded, settings, before.leakage_keys if name == knows else now.leakage_keys, run)
        for name, run in runs.items()
    }
    champion = RegisteredRef("1", RunRef("", str(runs["champion"]), "", ""), adapters["champion"], settings.model_name)
    monkeypatch.setattr(evaluation, "fetch_champion", lambda *_, **__: champion)
    settings = replace(settings, split_seed=43)
    report, left_out = evaluated(settings, runs["candidate"], adapters["candidate"], dataset)
    both = set(zip(before.held_out["file"], before.held_out["line"], strict=True)) & set(
        zip(now.held_out["file"], now.held_out["line"], strict=True)
    )
    assert set(report.accuracy) == {"base", "champion", "candidate", "majority", "lookup table"}
    assert 0 < report.rows == len(both) < len(now.held_out)
    assert report.rows + left_out == len(now.held_out)
    described = describe_version(TrainedRef(RunRef("", "", "", ""), adapters["candidate"], report))
    assert f"over {report.rows} held-out rows" in described and f"{left_out} more are left out" in described


def test_champion_trained_on_all_held_out_rows_is_rejected(
    settings: RunConfig, loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, dataset = rows_of(settings)
    records = map(json.loads, data.held_out["record"])
    known = np.array([trace for record in records for trace in leakage_keys(record, settings.entity_fields)], np.uint64)
    adapter = adapter_of(loaded, replace(settings, output_dir=str(tmp_path)), known, tmp_path / "champion")
    champion = RegisteredRef("1", RunRef("", str(tmp_path / "champion"), "", ""), adapter, settings.model_name)
    monkeypatch.setattr(training, "fetch_champion", lambda *_, **__: champion)
    with pytest.raises(SettingsError, match=f"all {len(data.held_out)} held-out rows"):
        open_run.fn(settings, dataset)


def test_evaluation_scores_all_rows_of_the_same_split(
    settings: RunConfig, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, dataset = rows_of(settings)
    run = Path(settings.output_dir) / "same split"
    adapter = adapter_of(loaded, settings, data.leakage_keys, run)
    champion = RegisteredRef("1", RunRef("", str(run), "", ""), adapter, settings.model_name)
    monkeypatch.setattr(evaluation, "fetch_champion", lambda *_, **__: champion)
    report, left_out = evaluated(settings, run, adapter, dataset)
    assert (report.rows, left_out) == (len(data.held_out), 0)


@pytest.mark.parametrize("train_on", [None, "train-flow/gpu"], ids=["here", "pool"])
def test_evaluation_never_answers_on_the_cpu_in_silence(
    settings: RunConfig, loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train_on: str | None
) -> None:
    """The GPU's driver is too old, or a worker of a GPU pool has no GPU."""
    data, dataset = rows_of(settings)
    adapter = adapter_of(loaded, settings, data.leakage_keys, tmp_path / "run")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("training_core.training.gpu_check.find_driver", lambda: None if train_on else "driver 535")
    monkeypatch.setattr(evaluation, "load_adapted_model", None)
    with pytest.raises(SettingsError, match="expected one on this worker" if train_on else "found driver 535"):
        evaluated(replace(settings, train_on=train_on), tmp_path / "run", adapter, dataset)


@pytest.mark.parametrize("ends", ["well", "out of memory"])
def test_evaluation_leaves_no_model_in_memory(
    settings: RunConfig, loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """Also when the exception is kept, as Prefect keeps it until the retry."""
    data, dataset = rows_of(settings)
    adapter = adapter_of(loaded, settings, data.leakage_keys, tmp_path / "run")
    seen: list[weakref.ref[object]] = []

    def compare(candidate: EvaluatedModel, champion: object, rows: TrainingData, config: RunConfig) -> Comparison:
        seen.append(weakref.ref(candidate.loaded.model))
        if ends == "out of memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return compare_models(candidate, None, rows, config)

    monkeypatch.setattr(evaluation, "compare_models", compare)
    if ends == "well":
        evaluated(settings, tmp_path / "run", adapter, dataset)
    else:
        with pytest.raises(SettingsError, match=r"out of memory.*; set eval_batch_size 8") as kept:
            evaluated(settings, tmp_path / "run", adapter, dataset)
        assert isinstance(kept.value.__cause__, torch.OutOfMemoryError)
    assert [model() for model in seen] == [None]
