"""The ledger of a registered model: every decision on its versions, in MLflow, one numbered entry each.

An entry is a parameter of one MLflow run that is kept for this. MLflow lets one writer create a parameter and no
writer change it, on SQLite, on PostgreSQL and behind a server alike. So of two processes that decide at the same time,
on one machine or on two, only one can write entry 18; the other is refused, reads the new entry and decides again.
A lock with a lease can expire while its holder is frozen; this cannot.
"""

import contextlib
import getpass
import json
import os
import socket
import uuid
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

from mlflow.entities import LifecycleStage, Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.tracking import MlflowClient
from pydantic import TypeAdapter

from tasks.commands import mlflow_command
from tasks.create_once import found_or_created
from tasks.tracking import DECISIONS, connect, delete_runs, experiment_id, tracking_uri
from training_core.config import RunConfig, SettingsError
from training_core.dataset.row_sample import share_seen

GATE: Final = "gate"
HAND: Final = "hand"
ROLLBACK: Final = "rollback"
ALIAS: Final = "alias"  # moved outside sft-flow
EXPORT: Final = "export"  # a verdict on an export; it decides nothing

_RUN_TAG, _NAME_TAG = "sft_flow.ledger_run", "sft_flow.ledger_of"
_LONGEST_ENTRY, _LONGEST_REASON = 6000, 2500
_SHARE_OF_REUSED_ROWS = 0.5
_KEY, _APPLIED_KEY = "decision.{:06d}", "applied.{:06d}"


@dataclass(frozen=True)
class VersionId:
    """A version by its number and its run fingerprint: numbers start again when a registered model is deleted."""

    number: str
    fingerprint: str


@dataclass(frozen=True)
class Entry:
    """One decision. ``before`` and ``after`` are the champion before and after it; ``by`` is one of the five above.

    A decision of the gate also has its ``key`` (see ``tasks.promotion``), the digests of the held-out ``rows``, of the
    ``policy`` (the rule and its settings) and of the ``evidence`` (the evaluation folder), its p-values, and the
    ``row_sample`` of the held-out rows (see ``training_core.dataset.row_sample``).
    ``withdrawn`` are the run fingerprints that a rollback or a rejection withdraws.
    """

    by: str
    outcome: str
    version: VersionId | None
    before: VersionId | None
    after: VersionId | None
    reason: str = ""
    key: str = ""
    rows: str = ""
    row_sample: str = ""
    policy: str = ""
    evidence: str = ""
    p_values: dict[str, float] = field(default_factory=dict)
    champion_failing: bool = False
    withdrawn: tuple[str, ...] = ()
    flow_run: str = ""
    who: str = ""
    time: str = ""
    number: int = 0

    @property
    def verdict(self) -> str:
        """Outcome and reason, and whether the champion no longer passes."""
        failing = "; the champion no longer passes" if self.champion_failing else ""
        return f"{self.outcome}: {self.reason}{failing}"


@dataclass(frozen=True)
class Ledger:
    """All entries on a registered model, oldest first, the MLflow run that holds them, and the numbers of those after
    which the aliases were set."""

    run_id: str | None
    entries: tuple[Entry, ...]
    applied: frozenset[int] = frozenset()

    @property
    def champion(self) -> VersionId | None:
        """The champion after the newest entry."""
        return self.entries[-1].after if self.entries else None

    @property
    def earlier_champions(self) -> list[VersionId]:
        """The champions that a rollback can return to, oldest first: none that was withdrawn, each once."""
        champions: list[VersionId] = []
        for entry in self.entries:
            champions = [one for one in champions if one.fingerprint not in entry.withdrawn]
            gone = {entry.after, entry.before} if entry.after is None else {entry.after}
            if entry.before != entry.after:
                champions = [one for one in champions if one not in gone]
                champions += [entry.after] if entry.after else []
        return [one for one in champions if one != self.champion]

    @property
    def withdrawn(self) -> dict[str, Entry]:
        """The decision that withdrew a run fingerprint, by fingerprint; a promotion by hand lifts it."""
        found: dict[str, Entry] = {}
        for entry in self.entries:
            found |= dict.fromkeys(entry.withdrawn, entry)
            if entry.by in (HAND, ROLLBACK) and entry.after and entry.after != entry.before:
                found.pop(entry.after.fingerprint, None)
        return found

    @property
    def newest_change(self) -> int | None:
        """The number of the newest entry with another champion after it than before."""
        return next((entry.number for entry in reversed(self.entries) if entry.before != entry.after), None)

    @property
    def is_applied(self) -> bool:
        """Whether the aliases were set after the newest change."""
        return self.newest_change in {None, *self.applied}

    def last_by_gate(self, fingerprint: str) -> Entry | None:
        """The gate's newest decision on a training."""
        about = [entry for entry in self.entries if entry.by == GATE and entry.version]
        return next((e for e in reversed(about) if e.version and e.version.fingerprint == fingerprint), None)

    def uses_of(self, row_sample: str) -> tuple[int, int]:
        """How many evaluations of candidates these held-out rows have served, and how many they have promoted.

        Every decision of the gate on at least half of these rows counts, also a second one on a version with other
        settings of the evaluation: a set that changes a little every week is not a fresh one.
        """
        judged = [entry for entry in self.entries if entry.by == GATE and entry.version != entry.before]
        found = [one for one in judged if share_seen(row_sample, one.row_sample) >= _SHARE_OF_REUSED_ROWS]
        return len(found), sum(entry.after == entry.version for entry in found)


def read_ledger(config: RunConfig) -> Ledger:
    """The ledger of ``registered_model_name``; it has no entry where nothing was decided.

    Raises ``SettingsError`` when its MLflow run was deleted.
    """
    client = connect(config)
    run_id = _run_id(client, config)
    if run_id is None:
        return Ledger(None, ())
    run = client.get_run(run_id)
    if run.info.lifecycle_stage != LifecycleStage.ACTIVE:
        what = f"registered_model_name: the MLflow run with all decisions on {config.registered_model_name} was deleted"
        raise SettingsError([f"{what}; restore it: {restore_command(config, run_id)}"])
    params = sorted(run.data.params.items())
    entries = [TypeAdapter(Entry).validate_json(text) for key, text in params if key.startswith("decision.")]
    applied = frozenset(int(key.rpartition(".")[2]) for key, _ in params if key.startswith("applied."))
    return Ledger(run_id, tuple(entries), applied)


def append(config: RunConfig, ledger: Ledger, entry: Entry) -> Entry | None:
    """Write an entry after the last one of ``ledger``; ``None`` when another process has written one meanwhile."""
    client = connect(config)
    run_id = ledger.run_id or _create_run(client, config)
    written = _numbered(entry, len(ledger.entries) + 1)
    try:
        client.log_param(run_id, _KEY.format(written.number), _as_text(written))
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(INVALID_PARAMETER_VALUE):
            raise
        return None
    return written


def _numbered(entry: Entry, number: int) -> Entry:
    """The entry as it is written: with its number, its author and the time."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    who = entry.who or current_user()
    return replace(entry, reason=entry.reason[:_LONGEST_REASON], number=number, who=who, time=now)


def mark_applied(config: RunConfig, ledger: Ledger, number: int) -> None:
    """Note that the aliases were set after an entry; twice changes nothing."""
    connect(config).log_param(ledger.run_id, _APPLIED_KEY.format(number), "yes")


def current_user() -> str:
    """Who runs this process, and where: ``user@machine``."""
    user = str(os.getuid())
    with contextlib.suppress(KeyError, OSError):  # a container may have no name for its user
        user = getpass.getuser()
    return f"{user}@{socket.gethostname()}"


def restore_command(config: RunConfig, run_id: str) -> str:
    """The command that restores a deleted MLflow run."""
    return mlflow_command(tracking_uri(config), "runs", "restore", "--run-id", run_id)


def _run_id(client: MlflowClient, config: RunConfig) -> str | None:
    experiment = client.get_experiment_by_name(_experiment(config))
    return experiment.tags.get(_RUN_TAG) if experiment else None


def _create_run(client: MlflowClient, config: RunConfig) -> str:
    """The ledger's run. Of two processes that create it at once, the one whose experiment name was free wins."""
    name, experiment = config.registered_model_name, experiment_id(client, config, DECISIONS)
    tags = {_NAME_TAG: name, "mlflow.runName": f"decisions on {name}"}
    run, _ = found_or_created(lambda: _runs_for(client, config), lambda: client.create_run(experiment, tags=tags))
    client.set_terminated(run.info.run_id, "FINISHED")
    named = _name_run(client, config, run.info.run_id)
    delete_other_runs(config)
    return named


def delete_other_runs(config: RunConfig) -> None:
    """Delete the runs that a late server, or another process at the same moment, created next to the ledger's."""
    client = connect(config)
    named = _run_id(client, config)
    for run in _runs_for(client, config) if named else ():
        if run.info.run_id != named:
            delete_runs(client, [run])


def _runs_for(client: MlflowClient, config: RunConfig) -> list[Run]:
    own = f"tags.`{_NAME_TAG}` = '{config.registered_model_name}'"
    experiment = experiment_id(client, config, DECISIONS)
    return list(client.search_runs([experiment], own, order_by=["start_time ASC"]))


def _name_run(client: MlflowClient, config: RunConfig, run_id: str) -> str:
    """Name this run as the ledger's, unless another one is named already; the id of the one that is."""
    try:
        client.create_experiment(_experiment(config), tags={_RUN_TAG: run_id})
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
    return str(_run_id(client, config))


def _experiment(config: RunConfig) -> str:
    """An experiment without runs: names of experiments are unique, so its tag names the one run of the ledger."""
    return f"sft-flow-ledger/{config.registered_model_name}"


def _as_text(entry: Entry) -> str:
    """An entry as JSON, with as many of its p-values as fit."""
    # The id makes equal entries of two writers differ, so that one of the two is refused.
    values = _without_defaults(asdict(entry)) | {"id": uuid.uuid4().hex}
    for kept in range(len(entry.p_values), -1, -1):
        values["p_values"] = dict(list(entry.p_values.items())[:kept])
        text = json.dumps(values, ensure_ascii=False)
        if len(text) <= _LONGEST_ENTRY:
            return text
    raise ValueError(f"expected at most {_LONGEST_ENTRY} characters in an entry of the ledger, got {len(text)}")


def _without_defaults(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value not in ("", (), {}, False)}
