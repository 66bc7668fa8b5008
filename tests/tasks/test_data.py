"""Rows and settings that do not fit together fail the first task of a flow."""

from pathlib import Path

import pytest

from tasks import data
from tasks.data import validate_data
from training_core.config import RunConfig, SettingsError


def test_validation_rejects_unknown_favourable_decisions_after_the_report(
    tiny_base: Path, sample_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(data, "create_markdown_artifact", lambda text, **_: shown.append(text))
    places = {"model_name": str(tiny_base), "dataset_path": str(sample_rows), "output_dir": str(tmp_path)}
    validate_data.fn(RunConfig(**places))
    with pytest.raises(SettingsError, match="favourable_decisions: no row holds 'approve'; the rows hold '"):
        validate_data.fn(RunConfig(**places, favourable_decisions=("approve",)))
    assert len(shown) == 2
