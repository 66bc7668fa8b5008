"""A registered version is trained again as the first time, and compared on given rows as it is served."""

import dataclasses
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
from tiny_models import tiny_training

from tasks import side_by_side
from tasks.artifact_store import publish
from tasks.refs import DatasetRef
from training_core.data_loader import prepare_data
from training_core.dataset.store import load_training_data
from training_core.distributed import ADAPTER_FOLDER, train_adapter
from training_core.model_setup import digest_base_model
from training_core.training.fingerprint import digest_rows, run_fingerprint


@pytest.mark.slow
def test_reproduced_version_has_the_weights_of_the_first(
    tiny_base: Path, sample_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registry and tracking server are stand-ins; rows and training are real."""
    config = tiny_training(tiny_base, sample_rows, tmp_path, max_steps=2, gradient_accumulation_steps=1)
    rows, base = prepare_data(config, tiny_base), digest_base_model(tiny_base)
    digest = digest_rows(load_training_data(rows).train)
    train_adapter(config, rows, tmp_path / "first")
    run = Mock(fingerprint=run_fingerprint(config, digest, base), base_digest=base)
    registered = Mock(run=run, base=str(tiny_base), adapter=Mock(path=str(tmp_path / "first" / ADAPTER_FOLDER)))
    dataset = Mock(spec=DatasetRef, folder=publish(rows), digest=digest)
    monkeypatch.setattr(side_by_side, "fetch_registered", lambda *_: registered)
    monkeypatch.setattr(side_by_side, "registered_settings", lambda *_: config)
    monkeypatch.setattr(side_by_side, "registered_dataset", lambda *_: dataset)
    found = side_by_side.reproduce(config, "1")
    assert (found.differences, found.trained_again) == ([], found.registered)
    assert (Path(config.output_dir) / "reproduced" / run.fingerprint[:12] / ADAPTER_FOLDER).is_dir()


def test_versions_are_compared_on_given_rows_as_served(
    tiny_base: Path, sample_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file is read as held-out rows alone; the registry's limit and form come before those of the run."""
    config = tiny_training(tiny_base, sample_rows, tmp_path)
    dataset = Mock(spec=DatasetRef, folder=publish(prepare_data(config, tiny_base)))
    given = tmp_path / "given.jsonl"
    shutil.copy(sample_rows, given)
    run = Mock(fingerprint="f" * 64)
    registered = Mock(run=run, base=str(tiny_base), max_new_tokens=9, constrain="none")
    own = dataclasses.replace(config, constrain="schema")
    compared = Mock(side_effect=StopIteration)
    monkeypatch.setattr(side_by_side, "fetch_registered", lambda *_: registered)
    monkeypatch.setattr(side_by_side, "registered_settings", lambda *_: own)
    monkeypatch.setattr("tasks.registered.registered_dataset", lambda *_: dataset)
    monkeypatch.setattr(side_by_side, "_load", Mock())
    monkeypatch.setattr(side_by_side, "compare_models", compared)
    with pytest.raises(StopIteration):
        side_by_side.compare_registered([(config, "1"), (config, "2")], str(given))
    _, _, data, settings = compared.call_args.args
    assert (settings.constrain, settings.eval_max_new_tokens) == ("none", 9)
    assert len(data.train) and len(data.held_out) > len(data.train)
