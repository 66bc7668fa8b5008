"""How the flow ends, by what the gate says; the tasks are those of a run in which nothing is trained."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from flows import reevaluate_flow, sft_flow, train_flow
from tasks.refs import DatasetRef, EvalReport, FolderRef, ModelVersionRef, RegisteredRef, RunRef, TrainedRef
from training_core.config import RunConfig, SettingsError

FOLDER = FolderRef("folder", None, "digest")
DATASET = DatasetRef(FOLDER, "d", 10, 2, "b")
RUN = RunRef("fingerprint", "run", "b", "r")
VERSION = ModelVersionRef("model", "2", champion=False, verdict="not decided")
DECIDED = ModelVersionRef("model", "2", champion=True, verdict="becomes champion: better")


def trained(champion: str | None) -> TrainedRef:
    return TrainedRef(RUN, FOLDER, EvalReport(FOLDER, 2, {}, {}, champion))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the tasks are called with; every evaluation meets another champion, and the second one holds."""
    calls: list[Any] = []
    champions = iter(("7", "8", "9"))

    def noted(name: str, result: Callable[..., Any]) -> Callable[..., Any]:
        def task(*given: Any) -> Any:
            calls.append((name, *given[2:]))
            return result(*given)

        return task

    def promote(_config: object, _rows: object, _version: object, report: EvalReport) -> ModelVersionRef | None:
        return DECIDED if report.champion == "8" else None

    tasks: dict[str, Callable[..., Any]] = {
        **dict.fromkeys(
            ("limit_attempts", "setup_logging", "validate_data", "preflight", "name_by_fingerprint"), lambda *_: None
        ),
        **dict.fromkeys(("publish_report", "find_finished"), lambda *_: None),
        "build_dataset": lambda _: DATASET,
        "train_flow": noted("train_flow", lambda *_: trained(next(champions))),
        "train_on_pool": noted("train_on_pool", lambda *_: trained(next(champions))),
        "evaluate": noted("evaluate", lambda *_: trained(next(champions)).report),
        "record_evaluation": lambda *_: VERSION,
        "fetch_registered": lambda *_: RegisteredRef("2", RUN, FOLDER, "base"),
        "promote": promote,
    }
    for module in (sft_flow, reevaluate_flow):
        for name, task in tasks.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, task)
    return calls


def test_flow_evaluates_again_when_the_champion_changed(calls: list[Any]) -> None:
    finished = sft_flow.sft_flow.fn()
    assert (finished.version, finished.trained) == (DECIDED, trained("8"))
    assert calls == [("train_flow",), ("train_flow",)]


def test_flow_on_a_pool_numbers_its_evaluations(calls: list[Any]) -> None:
    assert sft_flow.sft_flow.fn(train_on="train-flow/gpu").version == DECIDED
    assert calls == [("train_on_pool", 1), ("train_on_pool", 2)]


def test_reevaluation_evaluates_again_when_the_champion_changed(calls: list[Any]) -> None:
    finished = reevaluate_flow.reevaluate_flow.fn(version="2")
    assert (finished.version, finished.trained.report.champion) == (DECIDED, "8")
    assert len(calls) == 2


def test_failing_champion_ends_the_run_in_its_own_state(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    failing = dataclasses.replace(DECIDED, champion=False, verdict="stays candidate: worse", champion_failing=True)
    for module, flow in ((sft_flow, sft_flow.sft_flow), (reevaluate_flow, reevaluate_flow.reevaluate_flow)):
        monkeypatch.setattr(module, "promote", lambda *_: failing)
        state = flow.fn()
        assert (state.name, state.message) == ("ChampionFailing", "model: stays candidate: worse")
        assert state.is_completed()
    assert sft_flow.nothing_new(failing).name == "ChampionFailing"
    assert sft_flow.nothing_new(DECIDED).name == "NothingNew"


def test_flow_with_a_known_result_publishes_what_is_missing(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sft_flow, "find_finished", lambda *_: DECIDED)
    monkeypatch.setattr(sft_flow, "publish_missing_report", lambda *given: calls.append(given[1:]))
    assert sft_flow.sft_flow.fn().name == "NothingNew"
    assert calls == [(DATASET, DECIDED)]


def test_train_flow_checks_the_registered_version_where_it_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check computes answers, which takes a GPU; the waiting flow gets a result that has passed it."""
    calls: list[str] = []

    def noted(name: str, result: Any = None) -> Callable[..., Any]:
        return lambda *_: (calls.append(name), result)[1]

    results = {"open_run": RUN, "finetune": None, "publish_adapter": FOLDER, "evaluate": trained("7").report}
    for name in ("limit_attempts", "setup_logging"):
        monkeypatch.setattr(train_flow, name, lambda: None)
    for name in (*results, "register_adapter", "return_result"):
        monkeypatch.setattr(train_flow, name, noted(name, results.get(name)))
    assert train_flow.train_flow.fn(RunConfig(), DATASET) == trained("7")
    assert calls == [*results, "register_adapter", "return_result"]


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize(("error", "attempts"), [(SettingsError(["too large"]), 1), (OSError("gone"), 3)], ids=str)
def test_training_is_not_retried_with_wrong_settings(
    error: Exception, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[int] = []

    def open_run(*_: Any) -> RunRef:
        starts.append(1)
        raise error

    monkeypatch.setattr(train_flow, "open_run", open_run)
    state = train_flow.train_flow.with_options(retry_delay_seconds=0)(RunConfig(), DATASET, return_state=True)
    assert state.is_failed()
    assert len(starts) == attempts
