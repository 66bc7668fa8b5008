"""Trainings with dummy weights that are tracked, registered and promoted through a faulty proxy, and what MLflow then
holds of each."""

import contextlib
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from benchmarks.chaos_counts import ONE_OF_EACH, STEPS, held, judge
from benchmarks.chaos_proxy import Fault, proxy
from benchmarks.chaos_retries import Clock, repeat
from benchmarks.chaos_table import Trial
from flows.local_servers import mlflow_server
from tasks.ledger import GATE, Entry, Ledger
from tasks.leftovers import delete_leftovers
from tasks.refs import DatasetRef, EvalReport, FolderRef, RunRef, TrainedRef
from tasks.registry import find_or_create_version
from tasks.tracking import log_private_file, log_results, open_tracking_run, send_points
from tasks.versions import CANDIDATE, RegistryError, decide_once, find_version, point_alias, version_id
from training_core.config import RunConfig, read_settings
from training_core.evaluation.gate import BECOMES_CHAMPION
from training_core.folders import seal
from training_core.model_setup import digest_base_model
from training_core.training.adapter import LEAKAGE_KEYS_FILE
from training_core.training.journal import Point

_AT_ONCE = 4
_SHARE_OF_FAULTS = 1 / 6
_REQUESTS = 60  # of a training, about
_OUTAGE_SECONDS = 1800


@dataclass(frozen=True)
class Training:
    """A finished training that MLflow has not heard of."""

    config: RunConfig
    dataset: DatasetRef
    rows: Path
    run: RunRef
    adapter: FolderRef
    report: EvalReport


def training(folder: Path, name: str) -> Training:
    """A training with dummy weights; ``name`` is that of its registered model and makes its fingerprint."""
    for part in ("base", "adapter", "evaluation", "rows"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "base" / "config.json").write_text("{}")
    places = {"output_dir": str(folder), "dataset_path": "rows.jsonl", "model_name": str(folder / "base")}
    config = read_settings({"registered_model_name": name, **places})
    config.save(folder / "adapter")
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(name.encode())
    (folder / "evaluation" / "scores.json").write_text(json.dumps({"candidate": {"accuracy": 0.5}}))
    (folder / LEAKAGE_KEYS_FILE).write_bytes(b"keys")
    for file in ("report.json", "rejected.jsonl"):
        (folder / "rows" / file).touch()
    digest = digest_base_model(folder / "base")
    dataset = DatasetRef(FolderRef(str(folder / "rows"), None, "r" * 64), "d" * 64, 10, 2, digest)
    adapter = FolderRef(str(folder / "adapter"), None, seal(folder / "adapter"))
    report = EvalReport(
        FolderRef(str(folder / "evaluation"), None, "e" * 64), 2, {"candidate": 0.5}, {"candidate": 0.0}, None
    )
    return Training(
        config, dataset, folder / "rows", RunRef(f"{name}-".ljust(64, "0"), str(folder), digest, ""), adapter, report
    )


def register(one: Training, clock: Clock | None = None) -> None:
    """Track, register and promote a training, each step repeated like the task that does it."""
    config, fingerprint = one.config, one.run.fingerprint
    run_id = repeat(lambda: open_tracking_run(config, fingerprint, one.dataset, one.rows), clock)
    trained = TrainedRef(replace(one.run, tracking_run_id=run_id), one.adapter, one.report)
    points = [Point(step, STEPS, 1000.0 + step, {"loss": 1.0 / step}) for step in range(1, STEPS + 1)]
    for sent in (points[:2], points):
        repeat(lambda sent=sent: send_points(config, run_id, sent), clock)  # type: ignore[misc]
    repeat(lambda: log_private_file(config, trained.run, LEAKAGE_KEYS_FILE), clock)
    version = repeat(lambda: find_or_create_version(config, trained, "described"), clock)
    repeat(lambda: point_alias(config, CANDIDATE, version), clock)
    repeat(lambda: log_results(config, run_id, one.report), clock)
    repeat(lambda: promote(config, fingerprint), clock)


def promote(config: RunConfig, fingerprint: str) -> None:
    """Make the training's version champion, once."""

    def entry_of(ledger: Ledger) -> Entry:
        own = version_id(find_version(config, fingerprint))
        last = ledger.last_by_gate(fingerprint)
        return last or Entry(GATE, BECOMES_CHAMPION, own, ledger.champion, own, "better")

    decide_once(config, entry_of)


@contextlib.contextmanager
def tracked_at(address: str) -> Iterator[None]:
    """Use the MLflow server at this address."""
    with environment(MLFLOW_TRACKING_URI=address):
        yield


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables, and restore those of before."""
    before = os.environ.copy()
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def lost_answers(home: Path, seeds: Iterator[Random]) -> Iterator[Trial]:
    """MLflow did what it was asked for and the answer was lost, at calls of tracking, registration and promotion."""
    yield from _through_a_proxy(home, seeds, [Fault.LOST])


def server_faults(home: Path, seeds: Iterator[Random]) -> Iterator[Trial]:
    """MLflow refuses a connection, hangs, answers with a 500, or is late."""
    yield from _through_a_proxy(home, seeds, [Fault.REFUSED, Fault.HUNG, Fault.ERROR, Fault.SLOW])


def half_hour_outages(home: Path, seeds: Iterator[Random]) -> Iterator[Trial]:
    """MLflow hangs up or answers with a 503 for half an hour, by a clock of the pauses between a task's tries."""
    store = home / "mlflow.db"
    once = environment(MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    with once, mlflow_server(f"sqlite:///{store}", home / "artifacts", 0) as server:
        server.wait()
        for number, random in enumerate(seeds):
            yield _away(training(home / f"{number}", f"away-{number}"), store, server.address, random)


def _away(one: Training, store: Path, address: str, random: Random) -> Trial:
    """Register a training while the server is away, from a random request on."""
    clock, before, back = Clock(), iter(range(random.randrange(_REQUESTS))), list[float]()
    kind = random.choice([Fault.REFUSED, Fault.AWAY])

    def choose(_method: str, _path: str) -> Fault:
        if next(before, None) is not None:
            return Fault.NONE
        back.append(clock.now + _OUTAGE_SECONDS)
        return kind if clock.now < back[0] else Fault.NONE

    problem = ""
    with proxy(address, choose) as faulty, tracked_at(faulty.address):
        try:
            register(one, clock)
        except (RegistryError, OSError) as error:
            problem = f"{type(error).__name__}: {error}"[:500]
    found = held(store, one.run.fingerprint, one.config.registered_model_name)
    return judge(found, ONE_OF_EACH, int(faulty.injected[kind] > 0), problem)


def late_servers(home: Path, seeds: Iterator[Random]) -> Iterator[Trial]:
    """MLflow does what it was asked for long after its client gave up; the next start deletes what is there twice."""
    yield from _through_a_proxy(home, seeds, [Fault.LATE])


def at_once(home: Path, seeds: Iterator[Random]) -> Iterator[Trial]:
    """Four processes track, register and promote the same training at the same time."""
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(_AT_ONCE) as processes:
        for number, _ in enumerate(seeds):
            one = training(home / f"{number}", f"chaos-{number}")
            problem = "; ".join(filter(None, processes.map(_try_to_register, [one] * _AT_ONCE, chunksize=1)))
            found = held(home / f"{number}" / "mlflow.db", one.run.fingerprint, one.config.registered_model_name)
            # A process that was slower by a moment has taken its number back.
            yield judge(found | {"deleted versions": 0}, ONE_OF_EACH, 1, problem)


def _try_to_register(one: Training) -> str:
    """Why it failed; empty when it did not."""
    try:
        register(one)
    except (RegistryError, OSError) as error:
        return f"{type(error).__name__}: {error}"[:500]
    return ""


def _through_a_proxy(home: Path, seeds: Iterator[Random], faults: Sequence[Fault]) -> Iterator[Trial]:
    store = home / "mlflow.db"
    with _impatient(), mlflow_server(f"sqlite:///{store}", home / "artifacts", 0) as server:
        server.wait()
        for number, random in enumerate(seeds):
            yield _disturbed(training(home / f"{number}", f"chaos-{number}"), store, server.address, random, faults)


def _disturbed(one: Training, store: Path, address: str, random: Random, faults: Sequence[Fault]) -> Trial:
    """Register a training while one request in six meets a fault."""

    def choose(_method: str, path: str) -> Fault:
        # One file of the package is like the others.
        hit = random.random() < _SHARE_OF_FAULTS and "/artifacts/code/" not in path
        return random.choice(faults) if hit else Fault.NONE

    problem = ""
    with proxy(address, choose) as faulty, tracked_at(faulty.address):
        try:
            register(one)
        except (RegistryError, OSError) as error:
            problem = f"{type(error).__name__}: {error}"[:500]
        faulty.finish_late()
    injected, late = sum(faulty.injected.values()), faulty.injected[Fault.LATE]
    if late:
        with tracked_at(address):
            delete_leftovers(one.config)  # as the next start does
    found = held(store, one.run.fingerprint, one.config.registered_model_name)
    # A version that was created late had a number.
    return judge(found | {"deleted versions": 0} if late else found, ONE_OF_EACH, injected, problem)


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """MLflow's client gives up a request after seconds."""
    with environment(MLFLOW_HTTP_REQUEST_TIMEOUT="5", MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR="0"):
        yield
