"""One decision after another, each kept: on a real SQLite store, with processes that decide at the same time."""

import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from flows.local_servers import mlflow_server
from tasks import ledger, tracking, versions
from tasks.ledger import GATE, HAND, ROLLBACK, Entry, Ledger, VersionId, append, read_ledger
from tasks.versions import CHAMPION, PREVIOUS, decide_once, named_version, version_id
from training_core.config import RunConfig, SettingsError
from training_core.dataset.row_sample import sample_rows

ONE, TWO, THREE = (VersionId(str(number), f"fingerprint {number}") for number in (1, 2, 3))


@pytest.fixture
def registered(config: RunConfig) -> RunConfig:
    """Three versions, none champion."""
    client = tracking.connect(config)
    client.create_registered_model(config.registered_model_name)
    for one in (ONE, TWO, THREE):
        tags = {tracking.FINGERPRINT_TAG: one.fingerprint}
        assert client.create_model_version(config.registered_model_name, "nowhere", tags=tags).version == int(
            one.number
        )
    return config


def promotion(to: VersionId | None, by: str = GATE, before: VersionId | None = None, **more: object) -> Entry:
    return Entry(by, "becomes champion", to, before, to, **{"reason": "better"} | more)  # type: ignore[arg-type]


def promote(config: RunConfig, to: VersionId | None, by: str = GATE, **more: object) -> Entry | None:
    return decide_once(config, lambda found: promotion(to, by, found.champion, **more))


def alias(config: RunConfig, name: str) -> VersionId | None:
    return version_id(named_version(config, name))


def test_ledger_is_empty_before_the_first_decision(config: RunConfig) -> None:
    assert read_ledger(config) == Ledger(None, ())


def test_ledger_keeps_who_when_and_why(registered: RunConfig) -> None:
    written = promote(registered, ONE, p_values={"base": 0.0, "majority": 0.03}, rows="r", policy="p", evidence="e")
    (entry,) = read_ledger(registered).entries
    assert entry == written
    assert (entry.number, entry.version, entry.before, entry.after) == (1, ONE, None, ONE)
    assert entry.p_values == {"base": 0.0, "majority": 0.03}
    assert "@" in entry.who and entry.time.endswith("+00:00")


def test_ledger_entry_is_never_overwritten(registered: RunConfig) -> None:
    empty = read_ledger(registered)
    assert append(registered, empty, promotion(ONE))
    before = read_ledger(registered)
    assert append(registered, before, promotion(TWO, before=ONE))
    assert append(registered, before, promotion(THREE, before=ONE)) is None
    assert [entry.after for entry in read_ledger(registered).entries] == [ONE, TWO]
    client, first = tracking.connect(registered), before.entries[0]
    with pytest.raises(MlflowException, match="Changing param values is not allowed"):
        client.log_param(before.run_id, f"decision.{first.number:06d}", "{}")


def test_ledger_has_one_run_when_two_processes_create_it(registered: RunConfig) -> None:
    client = tracking.connect(registered)
    assert ledger._create_run(client, registered) == ledger._create_run(client, registered)


def test_ledger_of_a_deleted_run_names_the_restore_command(registered: RunConfig) -> None:
    promote(registered, ONE)
    run_id = read_ledger(registered).run_id
    tracking.connect(registered).delete_run(run_id)
    with pytest.raises(SettingsError, match=f"MLFLOW_TRACKING_URI=.*sqlite:.* mlflow runs restore --run-id {run_id}"):
        read_ledger(registered)


def test_ledger_survives_the_registered_model(registered: RunConfig) -> None:
    promote(registered, ONE)
    promote(registered, None, ROLLBACK, withdrawn=(ONE.fingerprint,))
    tracking.connect(registered).delete_registered_model(registered.registered_model_name)
    assert ONE.fingerprint in read_ledger(registered).withdrawn


def test_ledger_entry_too_long_for_mlflow_is_rejected(registered: RunConfig) -> None:
    with pytest.raises(ValueError, match="expected at most 6000 characters"):
        append(registered, read_ledger(registered), promotion(ONE, withdrawn=("x" * 6000,)))
    many = {f"slice {number}": 0.5 for number in range(900)}
    assert append(registered, read_ledger(registered), promotion(ONE, reason="y" * 9000, p_values=many))
    (entry,) = read_ledger(registered).entries
    assert 50 < len(entry.p_values) < 900 and list(entry.p_values) == list(many)[: len(entry.p_values)]


WEEKS = [sample_rows(range(start << 32, (start + 100) << 32, 1 << 32)) for start in (0, 40, 80, 500)]


def test_uses_of_rows_count_every_gate_decision(registered: RunConfig) -> None:
    first, *_ = WEEKS
    promote(registered, ONE, row_sample=first)
    promote(registered, TWO, row_sample=first)
    promote(registered, TWO, row_sample=first)  # the champion itself
    promote(registered, ONE, HAND, row_sample=first)
    again = Entry(GATE, "undecided", TWO, ONE, ONE, key="other settings", row_sample=first)
    decide_once(registered, lambda found: again)
    assert read_ledger(registered).uses_of(first) == (3, 2)


def test_uses_of_rows_count_where_half_are_the_same() -> None:
    """Of 100 rows each, this week's shares 60 with last week's, 20 with those of the week before, none with others."""
    one, two, three, other = WEEKS
    entries = [promotion(ONE, row_sample=rows) for rows in (one, two, three, other)]
    ledger = Ledger("run", tuple(entries))
    assert [ledger.uses_of(rows)[0] for rows in WEEKS] == [2, 3, 2, 1]
    assert Ledger("run", (promotion(ONE),)).uses_of(one) == (0, 0)


def test_aliases_follow_the_ledger(registered: RunConfig) -> None:
    promote(registered, ONE)
    assert (alias(registered, CHAMPION), alias(registered, PREVIOUS)) == (ONE, None)
    promote(registered, TWO)
    assert (alias(registered, CHAMPION), alias(registered, PREVIOUS)) == (TWO, ONE)
    promote(registered, ONE, ROLLBACK, withdrawn=(TWO.fingerprint,))
    assert (alias(registered, CHAMPION), alias(registered, PREVIOUS)) == (ONE, None)
    promote(registered, None, ROLLBACK, withdrawn=(ONE.fingerprint,))
    assert (alias(registered, CHAMPION), alias(registered, PREVIOUS)) == (None, None)


def test_aliases_are_set_after_a_writer_was_killed(registered: RunConfig) -> None:
    promote(registered, ONE)
    append(registered, read_ledger(registered), promotion(TWO, before=ONE))  # and then the process died
    found = versions.find_champion(registered, read_ledger(registered))
    assert version_id(found) == TWO, "readers see the champion of the ledger"
    assert decide_once(registered, lambda found: None) is None
    assert (alias(registered, CHAMPION), alias(registered, PREVIOUS)) == (TWO, ONE)


def test_alias_moved_in_mlflow_is_entered(registered: RunConfig) -> None:
    promote(registered, ONE)
    versions.point_alias(registered, CHAMPION, "3")
    decide_once(registered, lambda found: None)
    entry = read_ledger(registered).entries[-1]
    assert (entry.by, entry.before, entry.after) == ("alias", ONE, THREE)
    assert alias(registered, CHAMPION) == THREE and alias(registered, PREVIOUS) == ONE


def test_champion_deleted_in_mlflow_is_entered(registered: RunConfig) -> None:
    promote(registered, ONE)
    promote(registered, TWO)
    tracking.connect(registered).delete_model_version(registered.registered_model_name, "2")
    decide_once(registered, lambda found: None)
    found = read_ledger(registered)
    assert (found.entries[-1].by, found.champion, found.earlier_champions) == ("alias", None, [ONE])


def test_reused_version_number_is_another_version(registered: RunConfig) -> None:
    promote(registered, ONE)
    client, name = tracking.connect(registered), registered.registered_model_name
    client.delete_registered_model(name)
    client.create_registered_model(name)
    client.create_model_version(name, "nowhere", tags={tracking.FINGERPRINT_TAG: "another"})
    versions.point_alias(registered, CHAMPION, "1")
    decide_once(registered, lambda found: None)
    assert read_ledger(registered).champion == VersionId("1", "another")


def test_withdrawal_ends_with_a_promotion_by_hand() -> None:
    gate = [promotion(ONE), promotion(TWO, before=ONE)]
    back = promotion(ONE, ROLLBACK, TWO, withdrawn=(TWO.fingerprint,))
    assert Ledger("run", (*gate, back)).withdrawn == {TWO.fingerprint: back}
    assert not Ledger("run", (*gate, back, promotion(TWO, HAND, ONE))).withdrawn


def test_decision_is_shown_on_its_version(registered: RunConfig) -> None:
    promote(registered, ONE)
    promote(registered, TWO)
    promote(registered, ONE, ROLLBACK, withdrawn=(TWO.fingerprint,))
    one, two = (named_version(registered, number) for number in ("1", "2"))
    assert one and one.tags["sft_flow.decision.000001"] == "becomes champion (by gate): better"
    assert one.tags["sft_flow.decision.000003"].startswith("becomes champion (by rollback)")
    assert two and "better" in two.tags[versions.WITHDRAWN_TAG]
    promote(registered, TWO, HAND)
    two = named_version(registered, "2")
    assert two and versions.WITHDRAWN_TAG not in two.tags


QUALITY = {None: 0, ONE: 1, TWO: 2, THREE: 3}


def _promote_if_better(config: RunConfig, own: VersionId, start: "multiprocessing.synchronize.Barrier") -> str:
    """A gate that promotes what has the higher number."""

    def entry(found: Ledger) -> Entry:
        better = QUALITY[own] > QUALITY[found.champion]
        after = own if better else found.champion
        return Entry(GATE, "becomes champion" if better else "stays candidate", own, found.champion, after)

    start.wait(timeout=120)
    written = decide_once(config, entry)
    assert written
    return written.outcome


def _race(config: RunConfig, rounds: int, own: VersionId, barrier: object, results: object) -> None:
    for number in range(rounds):
        outcome = _promote_if_better(replace(config, registered_model_name=f"race {number}"), own, barrier)  # type: ignore[arg-type]
        results.put((number, own.number, outcome))  # type: ignore[attr-defined]


@pytest.fixture(params=["file", "server"])
def races(
    config: RunConfig, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[RunConfig]]:
    """Registered models with three versions each: in a SQLite file, or behind a server that several machines reach."""
    if request.param == "file":
        yield with_versions(config, 20)
        return
    with mlflow_server(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "artifacts", preferred_port=0) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.wait())
        yield with_versions(config, 5)


def with_versions(config: RunConfig, count: int) -> list[RunConfig]:
    client = tracking.connect(config)
    found = [replace(config, registered_model_name=f"race {number}") for number in range(count)]
    for race in found:
        client.create_registered_model(race.registered_model_name)
        for one in (ONE, TWO, THREE):
            tags = {tracking.FINGERPRINT_TAG: one.fingerprint}
            client.create_model_version(race.registered_model_name, "s3://nowhere/model", tags=tags)
    return found


@pytest.mark.slow
def test_race_of_two_promotions_leaves_the_better_champion(config: RunConfig, races: list[RunConfig]) -> None:
    spawn = multiprocessing.get_context("spawn")
    barrier, results = spawn.Barrier(2), spawn.Queue()
    arguments = [(config, len(races), one, barrier, results) for one in (TWO, THREE)]
    processes = [spawn.Process(target=_race, args=given) for given in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
    assert [process.exitcode for process in processes] == [0, 0]
    said = [results.get(timeout=10) for _ in range(2 * len(races))]
    for number, race in enumerate(races):
        entries = read_ledger(race).entries
        assert alias(race, CHAMPION) == THREE
        assert {entry.version for entry in entries} == {TWO, THREE} and len(entries) == 2
        assert {(who, what) for n, who, what in said if n == number} == {
            (str(entry.version and entry.version.number), entry.outcome) for entry in entries
        }
        for before, after in zip((None, *entries), entries, strict=False):
            assert after.before == (before.after if before else None)
