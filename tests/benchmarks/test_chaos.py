"""One of each in MLflow, whatever answers are lost and however many processes try at once. A part of `make chaos`."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from benchmarks import chaos, chaos_table
from benchmarks.chaos_counts import ONE_OF_EACH, held, judge
from benchmarks.chaos_proxy import Fault, proxy
from benchmarks.chaos_registry import Training, environment, half_hour_outages, register, tracked_at, training
from benchmarks.chaos_store import store_faults
from benchmarks.chaos_table import Trial, table
from flows.local_servers import mlflow_server
from tasks.refs import TrainedRef
from tasks.registry import find_or_create_version
from tasks.tracking import open_tracking_run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chaos")


@pytest.fixture(scope="module")
def mlflow_address(home: Path) -> Iterator[str]:
    with mlflow_server(f"sqlite:///{home}/mlflow.db", home / "artifacts", 0) as server:
        yield server.wait()


@pytest.mark.slow
def test_lost_answers_of_creations_leave_one_of_each(home: Path, mlflow_address: str) -> None:
    """Every other request that creates or decides is done, and its answer is lost."""
    asked: Counter[str] = Counter()

    def choose(method: str, path: str) -> Fault:
        asked[path] += 1
        return Fault.LOST if method == "POST" and "search" not in path and asked[path] % 2 else Fault.NONE

    one = training(home / "lost", "lost")
    with proxy(mlflow_address, choose) as faulty, tracked_at(faulty.address):
        register(one)
    assert faulty.injected[Fault.LOST] >= 9
    assert held(home / "mlflow.db", one.run.fingerprint, "lost") == ONE_OF_EACH


def register_another(one: Training) -> None:
    """Register another training of the same registered model."""
    run = replace(one.run, fingerprint=f"another {one.config.registered_model_name}")
    run = replace(run, tracking_run_id=open_tracking_run(one.config, run.fingerprint, one.dataset, one.rows))
    find_or_create_version(one.config, TrainedRef(run, one.adapter, one.report), "")


@pytest.mark.slow
@pytest.mark.parametrize("next_start", [register, register_another])
def test_creations_that_a_server_does_late_leave_one_of_each(
    next_start: Callable[[Training], None], home: Path, mlflow_address: str
) -> None:
    """Every first request that creates is done after the training was registered; then comes the next start."""
    asked: Counter[str] = Counter()

    def choose(method: str, path: str) -> Fault:
        created = method == "POST" and path.endswith(("/create", "/logged-models"))
        asked[path] += created
        return Fault.LATE if created and asked[path] % 2 else Fault.NONE

    name = f"late-{next_start.__name__}"
    one, store = training(home / name, name), home / "mlflow.db"
    with proxy(mlflow_address, choose) as faulty, tracked_at(faulty.address):
        register(one)
        assert held(store, one.run.fingerprint, name) == ONE_OF_EACH
        faulty.finish_late()
        late = held(store, one.run.fingerprint, name)
        assert {what for what, count in late.items() if count == 2} == {"runs", "logged models", "versions", "ledgers"}
    with tracked_at(mlflow_address):
        next_start(one)
    versions = 1 + (next_start is register_another)
    assert held(store, one.run.fingerprint, name) == {**ONE_OF_EACH, "versions": versions, "deleted versions": 1}


@pytest.mark.slow
def test_faults_of_a_server_leave_one_of_each(home: Path, mlflow_address: str) -> None:
    random, faults = Random(1), [Fault.REFUSED, Fault.ERROR, Fault.SLOW, Fault.LOST]

    def choose(_method: str, path: str) -> Fault:
        return random.choice(faults) if random.random() < 1 / 6 and "/code/" not in path else Fault.NONE

    one = training(home / "faults", "faults")
    quick = environment(MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR="0")
    with quick, proxy(mlflow_address, choose) as faulty, tracked_at(faulty.address):
        register(one)
    assert sum(faulty.injected.values()) >= 5
    assert held(home / "mlflow.db", one.run.fingerprint, "faults") == ONE_OF_EACH


@pytest.mark.slow
def test_outage_of_half_an_hour_leaves_one_of_each(home: Path) -> None:
    (trial,) = half_hour_outages(home / "away", iter([Random(1)]))
    assert trial == Trial(1, 1, 0, 0)


def test_another_machine_resumes_from_a_store_that_fails(home: Path) -> None:
    trials = list(store_faults(home / "store", map(Random, range(3, 6))))
    assert sum(trial.injected for trial in trials) >= 5
    assert all(trial.survived == trial.injected for trial in trials), trials


@pytest.mark.slow
def test_four_trainings_of_one_fingerprint_leave_one_of_each(
    home: Path, mlflow_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")
    one = training(home / "at-once", "at-once")
    with tracked_at(mlflow_address), ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(register, one) for _ in range(4)]:
            done.result(timeout=300)
    found = held(home / "mlflow.db", one.run.fingerprint, "at-once")
    # One that was slower by a moment has taken its number back.
    assert found | {"deleted versions": 0} == ONE_OF_EACH


def test_trial_counts_what_is_lost_and_what_is_twice() -> None:
    assert judge(ONE_OF_EACH, ONE_OF_EACH, 3) == Trial(3, 3, 0, 0)
    wrong = judge({**ONE_OF_EACH, "runs": 2, "points": 3}, ONE_OF_EACH, 3)
    assert (wrong.survived, wrong.lost, wrong.duplicated) == (0, 2, 1)
    assert "'runs': (2, 1)" in wrong.problem


def test_parts_repeat_with_their_seed_and_go_on_where_they_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chaos_table, "RESULTS", tmp_path / "chaos.json")
    monkeypatch.setattr(chaos, "NAMES", {"part": "A fault"})
    seen: list[float] = []

    def part(_home: Path, seeds: Iterator[Random]) -> Iterator[Trial]:
        for random in seeds:
            seen.append(random.random())
            yield Trial(2, 2, 0, 0)

    for times in (3, 3, 8):
        chaos.inject(part, times, seed=5, end=float("inf"))
    assert len(seen) == len(set(seen)) == 4
    assert seen[2] == next(chaos.seeds(part, 5, 2)).random()
    results = json.loads((tmp_path / "chaos.json").read_text())
    assert (
        table(results, {"part": "A fault", "other": "Not run"})
        .splitlines()[2]
        .startswith("| A fault | 8 | 8 | 0 | 0 |")
    )
