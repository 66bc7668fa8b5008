"""A base on the hub is downloaded as the commit, tag or branch that the settings name."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hub_stand_in import NAME, commit_of, hub_with

from training_core.config import RunConfig, SettingsError
from training_core.model_setup import digest_base_model, fetch_base_model, fetch_tokenizer, hub_commit
from training_core.utils import validate_args


@pytest.fixture
def hub(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The files of two commits, of which the first has a tag; they differ in weights and positions."""
    commits = [shutil.copytree(tiny_base, tmp_path / name) for name in ("first", "second")]
    architecture = json.loads((commits[0] / "config.json").read_text())
    (commits[0] / "config.json").write_text(json.dumps(architecture | {"max_position_embeddings": 64}))
    with hub_with(commits, {"v1": 0}, monkeypatch):
        yield commits


@pytest.fixture
def config(hub: list[Path], sample_rows: Path, tmp_path: Path) -> RunConfig:
    places = {"output_dir": str(tmp_path / "runs"), "cache_dir": str(tmp_path / "cache")}
    return RunConfig(model_name=NAME, dataset_path=str(sample_rows), **places)


@pytest.mark.parametrize(("revision", "number"), [(None, 1), ("main", 1), ("v1", 0), (commit_of(0), 0)])
def test_base_has_the_files_of_its_revision(
    config: RunConfig, hub: list[Path], revision: str | None, number: int
) -> None:
    base = fetch_base_model(NAME, config.cache_dir, revision)
    assert hub_commit(base) == commit_of(number)
    assert digest_base_model(base) == digest_base_model(hub[number])
    assert fetch_tokenizer(NAME, config.cache_dir, revision) == base


def test_settings_are_checked_on_the_revision(config: RunConfig) -> None:
    """Only the first commit has too few positions."""
    validate_args(config)
    with pytest.raises(SettingsError, match="more than the 64 positions"):
        validate_args(replace(config, model_revision="v1"))


def test_unknown_revision_is_named(config: RunConfig) -> None:
    with pytest.raises(SettingsError, match=r"model_revision: the hub has no 'v2' of 'some/base'; give a commit"):
        validate_args(replace(config, model_revision="v2"))


def test_revision_of_a_folder_is_rejected(config: RunConfig, tiny_base: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        validate_args(replace(config, model_name=str(tiny_base), model_revision="v1"))
    (problem,) = caught.value.problems
    assert problem.startswith("model_revision: 'v1' names files on the hub, but") and "leave it empty" in problem
