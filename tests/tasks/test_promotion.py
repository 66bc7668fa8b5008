"""A decision is made once, against the champion of that moment, and kept; on a real SQLite store with any verdict."""

import dataclasses
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prefect.logging import disable_run_logger

from tasks import announcements, promotion, tracking, versions
from tasks.by_hand import reject_by_hand
from tasks.commands import registry_command
from tasks.ledger import HAND, ROLLBACK, Entry, read_ledger
from tasks.refs import DatasetRef, EvalReport, FolderRef, ModelVersionRef
from tasks.versions import CHAMPION, decide_once, named_version, version_id
from training_core.config import RunConfig, SettingsError
from training_core.data_loader import prepare_data
from training_core.dataset.store import load_training_data
from training_core.evaluation.gate import BECOMES_CHAMPION, STAYS_CANDIDATE, UNDECIDED, Verdict
from training_core.folders import seal, seal_digest
from training_core.model_setup import digest_base_model
from training_core.training.fingerprint import digest_rows, run_fingerprint

BETTER = Verdict(BECOMES_CHAMPION, "60.0% right, the lookup table has 42.0%", (), {"base": 0.001})
WORSE = Verdict(STAYS_CANDIDATE, "30.0% right, the lookup table has 42.0%", (), {"base": 0.6})


@dataclass
class Gate:
    """A gate with a verdict of the test's choice; it keeps what it was called with and what was announced."""

    verdict: Verdict = BETTER
    counts: list[tuple[int, ...]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)

    def decide(self, _evidence: object, _config: RunConfig, *counts: int) -> Verdict:
        self.counts.append(counts)
        return self.verdict

    def emit(self, event: str, resource: dict[str, str], payload: dict[str, str]) -> None:
        self.events.append(f"{event} {resource['prefect.resource.id'].rpartition('.')[2]}")


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    monkeypatch.setattr(promotion, "load_evidence", lambda folder: None)
    monkeypatch.setattr(promotion, "decide", gate.decide)
    monkeypatch.setattr(promotion, "is_failing", lambda *_: gate.verdict.outcome == STAYS_CANDIDATE)
    monkeypatch.setattr(announcements, "emit_event", gate.emit)
    return gate


@pytest.fixture(scope="module")
def prepared(tiny_base: Path, sample_rows: Path, output_dir: Path) -> DatasetRef:
    """The sample rows, encoded."""
    places = {"dataset_path": str(sample_rows), "output_dir": str(output_dir)}
    folder = prepare_data(RunConfig(model_name=str(tiny_base), max_seq_length=4096, **places), tiny_base)
    data = load_training_data(folder)
    ref = FolderRef(str(folder), None, seal_digest(folder) or "")
    return DatasetRef(ref, digest_rows(data.train), len(data.train), len(data.held_out), digest_base_model(tiny_base))


def register(config: RunConfig, fingerprint: str) -> ModelVersionRef:
    client, name = tracking.connect(config), config.registered_model_name
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    run = client.create_run(tracking.experiment_id(client, config))
    tags = {tracking.FINGERPRINT_TAG: fingerprint, **versions.serving_tags(config)}
    found = client.create_model_version(name, "nowhere", run.info.run_id, tags=tags)
    return ModelVersionRef(name, str(found.version), champion=False, verdict="not decided")


@pytest.fixture
def version(config: RunConfig, prepared: DatasetRef) -> ModelVersionRef:
    """The version that a run with these settings and rows registers."""
    return register(config, run_fingerprint(config, prepared.digest, prepared.base_digest))


@pytest.fixture
def other(config: RunConfig, version: ModelVersionRef) -> ModelVersionRef:
    """A version of another training."""
    return register(config, "other")


def evaluated(config: RunConfig, champion: str | None = None, rows: str = "") -> EvalReport:
    """An evaluation in which this champion took part."""
    folder = Path(config.output_dir) / "evaluations" / f"{config.registered_model_name} {champion} {rows}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scores.json").write_text(folder.name)
    return EvalReport(FolderRef(str(folder), None, seal(folder)), 100, {}, {}, champion)


def promote(
    config: RunConfig, rows: DatasetRef, version: ModelVersionRef, report: EvalReport
) -> ModelVersionRef | None:
    with disable_run_logger():
        return promotion.promote.fn(config, rows, version, report)


def find_finished(config: RunConfig, rows: DatasetRef) -> ModelVersionRef | None:
    return promotion.find_finished.fn(config, rows)


def champion(config: RunConfig) -> str | None:
    found = version_id(named_version(config, CHAMPION))
    return found.number if found else None


def by_hand(config: RunConfig, to: ModelVersionRef | None, by: str = HAND, withdrawn: tuple[str, ...] = ()) -> None:
    after = version_id(named_version(config, to.version)) if to else None
    decide_once(config, lambda found: Entry(by, by, after, found.champion, after, "because", withdrawn=withdrawn))


def test_promotion_makes_the_first_champion(
    config: RunConfig, prepared: DatasetRef, version: ModelVersionRef, gate: Gate
) -> None:
    decided = promote(config, prepared, version, evaluated(config))
    assert decided and decided.champion and champion(config) == version.version
    assert decided.verdict == "becomes champion: 60.0% right, the lookup table has 42.0%"
    (entry,) = read_ledger(config).entries
    assert (entry.by, entry.p_values, entry.evidence) == ("gate", {"base": 0.001}, evaluated(config).folder.digest)
    assert entry.rows and entry.policy and entry.key
    assert gate.events == [f"sft-flow.promoted {version.version}"]


def test_promotion_leaves_a_worse_version_candidate(
    config: RunConfig, prepared: DatasetRef, version: ModelVersionRef, gate: Gate
) -> None:
    gate.verdict = WORSE
    decided = promote(config, prepared, version, evaluated(config))
    assert decided and not decided.champion and champion(config) is None
    assert find_finished(config, prepared) == decided
    assert not gate.events


def test_promotion_repeated_after_a_crash_changes_nothing(
    config: RunConfig, prepared: DatasetRef, version: ModelVersionRef, gate: Gate
) -> None:
    first = promote(config, prepared, version, evaluated(config))
    assert promote(config, prepared, version, evaluated(config)) == first
    assert len(read_ledger(config).entries) == 1


def test_promotion_against_a_changed_champion_asks_for_evaluation(
    config: RunConfig, prepared: DatasetRef, version: ModelVersionRef, other: ModelVersionRef, gate: Gate
) -> None:
    by_hand(config, other)
    assert promote(config, prepared, version, evaluated(config)) is None
    assert champion(config) == other.version and not gate.counts
    decided = promote(config, prepared, version, evaluated(config, champion=other.version))
    assert decided and decided.champion


def test_promotion_after_the_champion_was_deleted_asks_for_evaluation(
    config: RunConfig, prepared: DatasetRef, version: ModelVersionRef, other: ModelVersionRef, gate: Gate
) -> None:
    by_hand(config, other)
    tracking.connect(config).delete_model_version(config.registered_model_name, other.version)
    assert promote(config, prepared, version, evaluated(config, champion=other.version)) is None
    assert promote(config, prepared, version, evaluated(config))
    assert champion(config) == version.version


def test_promotion_of_a_deleted_version_says_what_to_do(
    config: RunConfig, prepared: DatasetRef, version: ModelVersionRef, gate: Gate
) -> None:
    tracking.connect(config).delete_model_version(config.registered_model_name, version.version)
    with pytest.raises(SettingsError, match="deleted while it was evaluated; start the run again"):
        promote(config, prepared, version, evaluated(config))


def test_promotion_with_require_approval_stops_at_ready(
    config: RunConfig, prepared: DatasetRef, version: ModelVersionRef, gate: Gate
) -> None:
    config = dataclasses.replace(config, require_approval=True)
    decided = promote(config, prepared, version, evaluated(config))
    assert decided and not decided.champion and champion(config) is None
    assert decided.verdict.startswith("ready: ") and "a person decides: " in decided.verdict
    for word in ("promote", "reject"):
        command = registry_command(config, word, version.name, version.version, with_reason=True)
        assert command in decided.verdict
    assert find_finished(config, prepared) == decided
    assert find_finished(dataclasses.replace(config, require_approval=False), prepared) is None


def test_promotion_of_a_withdrawn_version_is_refused(
    config: RunConfig, prepared: DatasetRef, version: ModelVersionRef, other: ModelVersionRef, gate: Gate
) -> None:
    by_hand(config, other)
    promote(config, prepared, version, evaluated(config, champion=other.version))
    fingerprint = read_ledger(config).champion
    assert fingerprint
    by_hand(config, other, ROLLBACK, (fingerprint.fingerprint,))
    finished = find_finished(config, prepared)
    assert finished and "withdrawn by" in finished.verdict and not finished.champion
    decided = promote(config, prepared, version, evaluated(config, champion=other.version, rows="new"))
    assert decided and not decided.champion and champion(config) == other.version
    assert registry_command(config, "promote", version.name, version.version, with_reason=True) in decided.verdict


def test_promotion_of_a_withdrawn_training_registered_again_is_refused(
    config: RunConfig, prepared: DatasetRef, version: ModelVersionRef, gate: Gate
) -> None:
    fingerprint = run_fingerprint(config, prepared.digest, prepared.base_digest)
    promote(config, prepared, version, evaluated(config))
    by_hand(config, None, ROLLBACK, (fingerprint,))
    tracking.connect(config).delete_registered_model(config.registered_model_name)
    assert find_finished(config, prepared) is None
    decided = promote(config, prepared, register(config, fingerprint), evaluated(config))
    assert decided and not decided.champion and "withdrawn by" in decided.verdict


def test_promotion_of_a_rejected_training_is_refused(
    config: RunConfig, prepared: DatasetRef, version: ModelVersionRef, gate: Gate
) -> None:
    waiting = dataclasses.replace(config, require_approval=True)
    promote(waiting, prepared, version, evaluated(config))
    reject_by_hand(config, version.version, "rude answers")
    finished = find_finished(waiting, prepared)
    assert finished and "(rude answers): no run promotes it again" in finished.verdict
    tracking.connect(config).delete_registered_model(config.registered_model_name)
    again = register(config, run_fingerprint(config, prepared.digest, prepared.base_digest))
    decided = promote(config, prepared, again, evaluated(config, rows="new"))
    assert decided and not decided.champion and "rude answers" in decided.verdict and champion(config) is None


def test_withdrawn_version_promoted_by_hand_is_champion(
    config: RunConfig, prepared: DatasetRef, version: ModelVersionRef, gate: Gate
) -> None:
    promote(config, prepared, version, evaluated(config))
    by_hand(config, None, ROLLBACK, (run_fingerprint(config, prepared.digest, prepared.base_digest),))
    by_hand(config, version)
    decided = promote(config, prepared, version, evaluated(config, rows="new"))
    assert decided and decided.champion and decided.verdict.startswith("is the champion already: ")


def test_champion_that_no_longer_passes_is_reported(
    config: RunConfig, prepared: DatasetRef, version: ModelVersionRef, other: ModelVersionRef, gate: Gate
) -> None:
    by_hand(config, other)
    gate.verdict = dataclasses.replace(WORSE, champion_failing=True)
    decided = promote(config, prepared, version, evaluated(config, champion=other.version))
    assert decided and decided.champion_failing and decided.verdict.endswith("; the champion no longer passes")
    assert gate.events == [f"sft-flow.champion-failing {other.version}"]
    assert find_finished(config, prepared) == decided


def test_champion_evaluated_itself_is_reported_when_failing(
    config: RunConfig, prepared: DatasetRef, version: ModelVersionRef, gate: Gate
) -> None:
    promote(config, prepared, version, evaluated(config))
    gate.verdict = WORSE
    decided = promote(config, prepared, version, evaluated(config, rows="new labels"))
    assert decided and decided.champion and decided.champion_failing
    assert gate.events[1:] == [f"sft-flow.champion-failing {version.version}"]


def test_champion_that_fails_and_is_replaced_is_not_reported(
    config: RunConfig, prepared: DatasetRef, version: ModelVersionRef, other: ModelVersionRef, gate: Gate
) -> None:
    by_hand(config, other)
    gate.verdict = dataclasses.replace(BETTER, champion_failing=True)
    decided = promote(config, prepared, version, evaluated(config, champion=other.version))
    assert decided and decided.champion and not decided.champion_failing
    assert gate.events == [f"sft-flow.promoted {version.version}"]


def test_gate_receives_how_often_the_rows_were_used(
    config: RunConfig, prepared: DatasetRef, version: ModelVersionRef, other: ModelVersionRef, gate: Gate
) -> None:
    gate.verdict = Verdict(UNDECIDED, "too few rows")
    promote(config, prepared, version, evaluated(config))
    promote(dataclasses.replace(config, max_eval_rows=3), prepared, version, evaluated(config, rows="three"))
    gate.verdict = BETTER
    promote(config, prepared, other, evaluated(config))
    promote(config, prepared, version, evaluated(config, champion=other.version))
    assert gate.counts == [(0, 0), (1, 0), (2, 0), (3, 1)]


def test_verdict_of_an_earlier_version_is_kept(
    config: RunConfig, prepared: DatasetRef, version: ModelVersionRef, other: ModelVersionRef, gate: Gate
) -> None:
    promote(config, prepared, version, evaluated(config))
    gate.verdict = WORSE
    promote(config, prepared, other, evaluated(config, champion=version.version))
    promote(config, prepared, version, evaluated(config, rows="new labels"))
    assert [entry.outcome for entry in read_ledger(config).entries] == [
        "becomes champion",
        "stays candidate",
        "is the champion already",
    ]
    found = named_version(config, version.version)
    assert found and found.tags["sft_flow.decision.000001"] == f"becomes champion (by gate): {BETTER.reason}"


CHANGES: dict[str, Callable[[RunConfig, DatasetRef], tuple[RunConfig, DatasetRef]]] = {
    "training rows": lambda config, rows: (config, dataclasses.replace(rows, digest="other")),
    "training setting": lambda config, rows: (dataclasses.replace(config, lora_r=8), rows),
    "evaluation setting": lambda config, rows: (dataclasses.replace(config, max_eval_rows=3), rows),
    "gate setting": lambda config, rows: (dataclasses.replace(config, min_improvement=0.2), rows),
}


@pytest.mark.parametrize("change", CHANGES)
def test_finished_run_is_not_found_with_other(
    change: str, config: RunConfig, prepared: DatasetRef, version: ModelVersionRef, gate: Gate
) -> None:
    decided = promote(config, prepared, version, evaluated(config))
    assert find_finished(config, prepared) == decided
    assert find_finished(*CHANGES[change](config, prepared)) is None


def test_finished_run_served_with_another_limit_is_rejected(
    config: RunConfig, prepared: DatasetRef, version: ModelVersionRef
) -> None:
    with pytest.raises(SettingsError, match=r"eval_max_new_tokens: .* is served with 512, got 9"):
        find_finished(dataclasses.replace(config, eval_max_new_tokens=9), prepared)


def test_finished_run_is_not_found_before_a_decision(
    config: RunConfig, prepared: DatasetRef, version: ModelVersionRef
) -> None:
    assert find_finished(config, prepared) is None


def test_finished_run_depends_on_the_held_out_rows(
    config: RunConfig, prepared: DatasetRef, version: ModelVersionRef, gate: Gate, tiny_base: Path, sample_rows: Path
) -> None:
    promote(config, prepared, version, evaluated(config))
    places = {"dataset_path": str(sample_rows), "output_dir": config.output_dir}
    folder = prepare_data(RunConfig(val_split=0.3, max_seq_length=4096, **places), tiny_base)
    rows = dataclasses.replace(prepared, folder=FolderRef(str(folder), None, seal_digest(folder) or ""))
    assert find_finished(config, rows) is None


def _delete_champion(config: RunConfig, other: ModelVersionRef) -> None:
    tracking.connect(config).delete_model_version(config.registered_model_name, other.version)


def _delete_alias(config: RunConfig, _other: ModelVersionRef) -> None:
    versions.point_alias(config, CHAMPION, None)


def _delete_model(config: RunConfig, _other: ModelVersionRef) -> None:
    tracking.connect(config).delete_registered_model(config.registered_model_name)


def _another_champion(config: RunConfig, _other: ModelVersionRef) -> None:
    by_hand(config, register(config, "third"))


ACCIDENTS = {
    "champion deleted": _delete_champion,
    "alias deleted": _delete_alias,
    "model deleted": _delete_model,
    "another champion": _another_champion,
}


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_finished_run_is_not_found_after(
    accident: str, config: RunConfig, prepared: DatasetRef, version: ModelVersionRef, other: ModelVersionRef, gate: Gate
) -> None:
    by_hand(config, other)
    gate.verdict = WORSE
    promote(config, prepared, version, evaluated(config, champion=other.version))
    assert find_finished(config, prepared)
    ACCIDENTS[accident](config, other)
    assert find_finished(config, prepared) is None


def test_finished_version_of_a_deleted_run_names_the_command(
    config: RunConfig, prepared: DatasetRef, version: ModelVersionRef, gate: Gate
) -> None:
    promote(config, prepared, version, evaluated(config))
    found = named_version(config, version.version)
    assert found
    tracking.connect(config).delete_run(found.run_id)
    with pytest.raises(SettingsError, match=f"was deleted; restore it: .*mlflow runs restore --run-id {found.run_id}"):
        find_finished(config, prepared)


def test_finished_run_is_not_found_by_number_alone(
    config: RunConfig, prepared: DatasetRef, version: ModelVersionRef, gate: Gate
) -> None:
    promote(config, prepared, version, evaluated(config))
    tracking.connect(config).delete_registered_model(config.registered_model_name)
    by_hand(config, register(config, "third"))
    assert champion(config) == version.version, "another version has its number"
    assert find_finished(config, prepared) is None
    register(config, run_fingerprint(config, prepared.digest, prepared.base_digest))
    assert find_finished(config, prepared) is None


# Accuracy of what takes part in the race, by version number.
RIGHT = {None: 0.42, "1": 0.5, "2": 0.6}


def _race(config: RunConfig, rows: DatasetRef, version: ModelVersionRef, barrier: Any, results: Any) -> None:
    """What a run does after its training: evaluate, promote, and again when the champion changed."""

    def decide(evidence: Path, _config: RunConfig, *_counts: int) -> Verdict:
        champion_then = evidence.name.split()[-2]
        before = champion_then if champion_then != "None" else None
        better = RIGHT[version.version] > RIGHT[before]
        reason = f"{RIGHT[version.version]:.0%} right, the other has {RIGHT[before]:.0%}"
        return Verdict(BECOMES_CHAMPION if better else STAYS_CANDIDATE, reason)

    promotion.load_evidence, promotion.decide = lambda folder: folder, decide  # type: ignore[assignment]
    promotion.announce = lambda *_: None
    promotion.is_failing = lambda *_: False
    for number in range(RACES):
        own = dataclasses.replace(version, name=f"promotions {number}")
        race = dataclasses.replace(config, registered_model_name=own.name)
        barrier.wait(timeout=200)
        decided = None
        while decided is None:
            before = champion(race)
            decided = promote(race, rows, own, evaluated(race, None if before == own.version else before, own.version))
        results.put((number, own.version, decided.verdict))


RACES = 20


@pytest.mark.slow
def test_race_of_two_runs_leaves_the_better_champion(config: RunConfig, prepared: DatasetRef) -> None:
    for number in range(RACES):
        race = dataclasses.replace(config, registered_model_name=f"promotions {number}")
        one, two = register(race, "one"), register(race, "two")
    spawn = multiprocessing.get_context("spawn")
    barrier, results = spawn.Barrier(2), spawn.Queue()
    processes = [
        spawn.Process(target=_race, args=(config, prepared, version, barrier, results)) for version in (one, two)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=500)
    assert [process.exitcode for process in processes] == [0, 0]
    said = [results.get(timeout=10) for _ in range(2 * RACES)]
    for number in range(RACES):
        race = dataclasses.replace(config, registered_model_name=f"promotions {number}")
        verdicts = {version: verdict for n, version, verdict in said if n == number}
        assert champion(race) == two.version
        assert verdicts[two.version].startswith("becomes champion: 60% right, the other has ")
        if len([entry for entry in read_ledger(race).entries if entry.after != entry.before]) == 2:
            assert verdicts[one.version] == "becomes champion: 50% right, the other has 42%"
        else:
            assert verdicts[one.version] == "stays candidate: 50% right, the other has 60%"


@pytest.mark.parametrize("moment", range(1, 7))
def test_version_deleted_at_any_moment_is_one_sentence(
    config: RunConfig,
    prepared: DatasetRef,
    version: ModelVersionRef,
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
    moment: int,
) -> None:
    """Before each request of the decision: then it is refused, or it is made, and no alias points to nothing."""
    client, requests = tracking.connect(config), []

    def connect_and_count(_config: RunConfig) -> Any:
        requests.append(None)
        if len(requests) == moment:
            client.delete_model_version(version.name, version.version)
        return client

    monkeypatch.setattr(versions, "connect", connect_and_count)
    try:
        promote(config, prepared, version, evaluated(config))
    except SettingsError as error:
        (problem,) = error.problems
        assert "was deleted while it was evaluated; start the run again" in problem
    monkeypatch.undo()
    assert champion(config) is None or len(requests) < moment
