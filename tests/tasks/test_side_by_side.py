"""A registered version is trained again as it was trained the first time."""

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
