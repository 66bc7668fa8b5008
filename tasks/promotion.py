"""Tasks that decide which version answers customers, and that find what was decided before."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from tasks.announcements import announce
from tasks.artifact_store import open_folder
from tasks.commands import registry_command
from tasks.ledger import GATE, Entry, Ledger, VersionId, read_ledger
from tasks.leftovers import delete_leftovers
from tasks.recovery import NETWORK
from tasks.refs import DatasetRef, EvalReport, ModelVersionRef
from tasks.tracking import FINGERPRINT_TAG
from tasks.versions import (
    decide_once,
    find_champion,
    find_version,
    named_version,
    require_served_settings,
    require_tracking_run,
    version_id,
)
from training_core.code_digest import code_digest
from training_core.config import RunConfig, SettingsError
from training_core.dataset.encoding import leakage_keys
from training_core.dataset.row_sample import sample_rows
from training_core.dataset.store import TrainingData, load_training_data
from training_core.evaluation.comparison import comparison_key
from training_core.evaluation.evidence import load_evidence
from training_core.evaluation.gate import BECOMES_CHAMPION, GATE_SETTINGS, STAYS_CANDIDATE, Verdict, decide, is_failing
from training_core.training.fingerprint import run_fingerprint

READY = "ready"


@task(task_run_name="find finished version", cache_policy=NO_CACHE, **NETWORK)
def find_finished(config: RunConfig, dataset: DatasetRef) -> ModelVersionRef | None:
    """The version that this run would end with, when it was trained and decided on before: nothing is new then.

    Retried because the registry is reached over the network. Raises ``SettingsError`` when the version's tracking run
    was deleted, or when it is served with another limit of an answer.
    """
    found = find_version(config, run_fingerprint(config, dataset.digest, dataset.base_digest))
    if found is None:
        return None
    require_tracking_run(config, found)
    require_served_settings(config, found)
    delete_leftovers(config)
    ledger, fingerprint = read_ledger(config), found.tags[FINGERPRINT_TAG]
    champion, last = version_id(find_champion(config, ledger)), ledger.last_by_gate(fingerprint)
    own, name = VersionId(str(found.version), fingerprint), config.registered_model_name
    if fingerprint in ledger.withdrawn:
        return ModelVersionRef(
            name, own.number, champion == own, _withdrawn(config, own, ledger.withdrawn[fingerprint])
        )
    data = load_training_data(open_folder(dataset.folder, config))
    if last is None or last.after != champion or last.version != own or last.key != _decision_key(config, data):
        return None
    return _decided(config, last)


@task(task_run_name="promote version {version.version}", cache_policy=NO_CACHE, **NETWORK)
def promote(
    config: RunConfig, dataset: DatasetRef, version: ModelVersionRef, report: EvalReport
) -> ModelVersionRef | None:
    """Make the version champion when the gate says so, and enter the decision and its reasons into the ledger.

    ``None`` when the champion changed since the evaluation: the version must be evaluated against the new one. A
    decision that is in the ledger already is returned, not repeated. Raises ``SettingsError`` when the version was
    deleted meanwhile.
    """
    data, folder = load_training_data(open_folder(dataset.folder, config)), open_folder(report.folder, config)
    evaluation = replace(report, folder=replace(report.folder, path=str(folder)))

    def entry_of(ledger: Ledger) -> Entry | None:
        own = _existing(config, version)
        champion = ledger.champion.number if ledger.champion else None
        return _decide(config, data, evaluation, ledger, own) if champion in (own.number, report.champion) else None

    entry = decide_once(config, entry_of)
    if entry is None:
        get_run_logger().info("The champion changed while version %s was evaluated: next evaluation", version.version)
        return None
    decided = _decided(config, entry)
    get_run_logger().info("Version %s %s", decided.version, decided.verdict)
    if entry.flow_run == str(flow_run.id or ""):  # a run that was resumed may do so twice
        announce(config.registered_model_name, entry)
    return decided


def _existing(config: RunConfig, version: ModelVersionRef) -> VersionId:
    own = version_id(named_version(config, version.version))
    if own is None:
        what = f"registered_model_name: {version.name} version {version.version} was deleted while it was evaluated"
        raise SettingsError([f"{what}; start the run again: it registers the adapter and trains nothing"])
    return own


def _decide(config: RunConfig, data: TrainingData, report: EvalReport, ledger: Ledger, own: VersionId) -> Entry:
    """The gate's entry on a version; the one in the ledger when the same decision is there."""
    before, key = ledger.champion, _decision_key(config, data)
    last = ledger.last_by_gate(own.fingerprint)
    if last and (last.version, last.key, last.evidence, last.after) == (own, key, report.folder.digest, before):
        return last
    evidence = load_evidence(Path(report.folder.path))
    row_sample = _sample(data)
    verdict = decide(evidence, config, *ledger.uses_of(row_sample))
    failing = is_failing(evidence, config, "candidate") if own == before else verdict.champion_failing
    outcome, reason = _outcome(config, verdict, own, ledger)
    after = own if outcome == BECOMES_CHAMPION else before
    return Entry(
        by=GATE,
        outcome=outcome,
        version=own,
        before=before,
        after=after,
        reason=reason,
        key=key,
        rows=_rows_digest(data),
        row_sample=row_sample,
        policy=_policy_digest(config),
        evidence=report.folder.digest,
        p_values=verdict.p_values,
        champion_failing=failing and after == before,
        flow_run=str(flow_run.id or ""),
    )


def _outcome(config: RunConfig, verdict: Verdict, own: VersionId, ledger: Ledger) -> tuple[str, str]:
    if own == ledger.champion:
        return "is the champion already", verdict.reason
    if own.fingerprint in ledger.withdrawn:
        return STAYS_CANDIDATE, _withdrawn(config, own, ledger.withdrawn[own.fingerprint])
    if verdict.outcome == BECOMES_CHAMPION and config.require_approval:
        promote_it, reject_it = (_by_hand(config, word, own) for word in ("promote", "reject"))
        return READY, f"{verdict.reason}; require_approval is set, so a person decides: {promote_it} or {reject_it}"
    return verdict.outcome, verdict.reason


def _withdrawn(config: RunConfig, own: VersionId, entry: Entry) -> str:
    what = f"withdrawn by {entry.who} on {entry.time[:10]} ({entry.reason})"
    return f"{what}: no run promotes it again; only a person can: {_by_hand(config, 'promote', own)}"


def _by_hand(config: RunConfig, word: str, own: VersionId) -> str:
    return registry_command(config, word, config.registered_model_name, own.number, with_reason=True)


def _decided(config: RunConfig, entry: Entry) -> ModelVersionRef:
    assert entry.version
    return ModelVersionRef(
        config.registered_model_name,
        entry.version.number,
        champion=entry.after == entry.version,
        verdict=entry.verdict,
        champion_failing=entry.champion_failing,
    )


def _decision_key(config: RunConfig, data: TrainingData) -> str:
    """SHA-256 over what a decision on a version depends on, apart from the champion: rows, evaluation and policy."""
    return hashlib.sha256(json.dumps([comparison_key(config, data, []), _policy_digest(config)]).encode()).hexdigest()


def _policy_digest(config: RunConfig) -> str:
    """SHA-256 over the rule of promotion: its code and its settings."""
    settings = {name: value for name, value in asdict(config).items() if name in (*GATE_SETTINGS, "require_approval")}
    code = code_digest("training_core.evaluation.gate", without=["training_core.config"])
    return hashlib.sha256(json.dumps([code, settings], sort_keys=True).encode()).hexdigest()


def _rows_digest(data: TrainingData) -> str:
    """SHA-256 over the held-out rows, in whatever order: settings of the evaluation do not change it."""
    records = sorted(hashlib.sha256(record.encode()).hexdigest() for record in data.held_out["record"])
    return hashlib.sha256("".join(records).encode()).hexdigest()


def _sample(data: TrainingData) -> str:
    """The held-out rows by their cases, whatever their labels, so that relabelled rows are no fresh ones."""
    return sample_rows(key for record in data.held_out["record"] for key in leakage_keys(json.loads(record), ()))
