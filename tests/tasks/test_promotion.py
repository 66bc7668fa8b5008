"""A promotion is earned, and decided once."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks import registry
from tasks.promotion import find_finished, judge, promote
from tasks.refs import DatasetRef, EvalReport, FolderRef, ModelVersionRef, TrainedRef
from training_core.config import RunConfig
from training_core.data_loader import prepare_data
from training_core.dataset.store import load_training_data
from training_core.folders import seal_digest
from training_core.model_setup import digest_base_model
from training_core.training.fingerprint import digest_rows, run_fingerprint


def report(candidate: float, champion: float | None = None, given_away: tuple[float, float] = (0.1, 0.1)) -> EvalReport:
    accuracy = {"base": 0.3, "candidate": candidate, "majority": 0.29, "lookup": 0.42}
    favourable = dict.fromkeys(accuracy, 0.2) | {"candidate": given_away[0]}
    if champion is not None:
        accuracy["champion"], favourable["champion"] = champion, given_away[1]
    return EvalReport(FolderRef("folder", None, "digest"), 100, accuracy, favourable, "7" if champion else None)


def test_the_first_adapter_ahead_of_base_and_baselines_becomes_champion() -> None:
    assert judge(report(0.6), 0.0) == (True, "60.0% of decisions right, the lookup has 42.0%")


def test_an_adapter_no_better_than_a_lookup_table_stays_candidate() -> None:
    earned, verdict = judge(report(0.42), 0.0)
    assert not earned
    assert "42.0%" in verdict and "lookup" in verdict


def test_an_adapter_must_beat_the_champion_by_more_than_the_margin() -> None:
    assert not judge(report(0.62, champion=0.6), 0.03)[0]
    assert judge(report(0.64, champion=0.6), 0.03)[0]


def test_an_adapter_that_gives_more_away_than_the_champion_stays_candidate() -> None:
    earned, verdict = judge(report(0.7, champion=0.6, given_away=(0.2, 0.1)), 0.0)
    assert not earned
    assert "20.0%" in verdict and "10.0%" in verdict


@pytest.fixture(scope="module")
def prepared(tiny_base: Path, sample_rows: Path, output_dir: Path) -> DatasetRef:
    """The sample rows, encoded."""
    places = {"dataset_path": str(sample_rows), "output_dir": str(output_dir)}
    folder = prepare_data(RunConfig(model_name=str(tiny_base), max_seq_length=4096, **places), tiny_base)
    data = load_training_data(folder)
    ref = FolderRef(str(folder), None, seal_digest(folder) or "")
    return DatasetRef(ref, digest_rows(data.train), len(data.train), len(data.held_out), digest_base_model(tiny_base))


@pytest.fixture
def fingerprint(config: RunConfig, prepared: DatasetRef) -> str:
    return run_fingerprint(config, prepared.digest, prepared.base_digest)


@pytest.fixture
def version(prefect_api: str, config: RunConfig, trained: TrainedRef) -> ModelVersionRef:
    number = registry.find_or_create_version(config, trained, "")
    return ModelVersionRef(config.registered_model_name, number, champion=False, verdict="not judged")


@pytest.fixture
def rival(config: RunConfig, trained: TrainedRef, version: ModelVersionRef) -> str:
    """The number of a version of another training."""
    other = dataclasses.replace(trained.run, fingerprint=trained.run.fingerprint[::-1])
    return registry.find_or_create_version(config, dataclasses.replace(trained, run=other), "")


@pytest.mark.slow
def test_a_version_counts_as_finished_when_it_is_judged_and_not_before(
    config: RunConfig, prepared: DatasetRef, version: ModelVersionRef
) -> None:
    assert find_finished(config, prepared) is None, "it was created, and then the process died"
    kept = promote(config, prepared, version, report(0.3))
    assert find_finished(config, prepared) == kept
    assert not kept.champion and kept.verdict.startswith("stays candidate")


@pytest.mark.slow
def test_a_new_champion_counts_as_finished_and_is_champion_when_judged_again(
    config: RunConfig, prepared: DatasetRef, version: ModelVersionRef
) -> None:
    crowned = promote(config, prepared, version, report(0.6))
    assert crowned.champion
    assert find_finished(config, prepared) == crowned
    again = promote(config, prepared, version, report(0.6))
    assert again.champion and again.verdict == "is the champion already: 60.0% of decisions right, the lookup has 42.0%"
    assert find_finished(config, prepared) == again


CHANGES: dict[str, Callable[[RunConfig, DatasetRef], tuple[RunConfig, DatasetRef]]] = {
    "rows trained on": lambda config, rows: (config, dataclasses.replace(rows, digest="other")),
    "a setting of the training": lambda config, rows: (dataclasses.replace(config, lora_r=8), rows),
    "a setting of the evaluation": lambda config, rows: (dataclasses.replace(config, max_eval_rows=3), rows),
    "the margin": lambda config, rows: (dataclasses.replace(config, min_improvement=0.2), rows),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_something_is_new_when_there_are_other(
    change: str, config: RunConfig, prepared: DatasetRef, version: ModelVersionRef
) -> None:
    promote(config, prepared, version, report(0.6))
    assert find_finished(config, prepared)
    assert find_finished(*CHANGES[change](config, prepared)) is None


@pytest.mark.slow
def test_something_is_new_when_rows_are_held_out_that_were_not(
    config: RunConfig,
    prepared: DatasetRef,
    version: ModelVersionRef,
    tiny_base: Path,
    sample_rows: Path,
) -> None:
    promote(config, prepared, version, report(0.6))
    places = {"dataset_path": str(sample_rows), "output_dir": config.output_dir}
    folder = prepare_data(RunConfig(val_split=0.3, max_seq_length=4096, **places), tiny_base)
    other = dataclasses.replace(prepared, folder=FolderRef(str(folder), None, seal_digest(folder) or ""))
    assert find_finished(config, other) is None


@pytest.mark.slow
def test_something_is_new_when_another_version_became_champion(
    config: RunConfig, prepared: DatasetRef, version: ModelVersionRef, rival: str
) -> None:
    promote(config, prepared, version, report(0.6))
    registry.point_alias(config, registry.CHAMPION, rival)
    assert find_finished(config, prepared) is None


@pytest.mark.slow
def test_nobody_is_promoted_over_a_champion_whom_it_has_not_met(
    config: RunConfig, prepared: DatasetRef, version: ModelVersionRef, rival: str
) -> None:
    registry.point_alias(config, registry.CHAMPION, rival)
    judged = promote(config, prepared, version, report(0.9))
    assert not judged.champion and "changed while it was judged" in judged.verdict
    assert find_finished(config, prepared) is None, "it has to be judged against the new one"
    met = dataclasses.replace(report(0.9, champion=0.6), champion=rival)
    assert promote(config, prepared, version, met).champion
