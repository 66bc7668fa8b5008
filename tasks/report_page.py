"""The report page of an evaluation: rendered, kept with the training's MLflow run, and written on this machine."""

from dataclasses import replace
from pathlib import Path

from tasks.artifact_store import open_folder
from tasks.changes import changes_since_champion
from tasks.commands import registry_command
from tasks.ledger import Entry, Ledger, read_ledger
from tasks.lineage import lineage
from tasks.refs import DatasetRef, ModelVersionRef, TrainedRef
from tasks.tracking import log_report_page, report_name
from tasks.versions import named_version, served_threshold
from training_core.config import RunConfig
from training_core.dataset.store import load_report
from training_core.dataset.tables import data_grids
from training_core.evaluation.evidence import load_evidence
from training_core.evaluation.gate import Verdict, decide
from training_core.evaluation.page import PageFacts, render_report
from training_core.folders import complete_file


def publish_page(config: RunConfig, dataset: DatasetRef, trained: TrainedRef, version: ModelVersionRef) -> Path:
    """Render the page on the gate's newest decision on this training and log it to the training's MLflow run.

    Each decision has a page of its own; a second call for the same decision writes the same page again. Returns the
    page's path on this machine, in the folder of the run.
    """
    ledger = read_ledger(config)
    entry = ledger.last_by_gate(trained.run.fingerprint)
    if entry is None:
        raise ValueError(f"expected a decision on {version.name} version {version.version} in the ledger, found none")
    evaluation = open_folder(trained.report.folder, config)
    changes = changes_since_champion(config, trained.run, evaluation, ledger, entry)
    facts = replace(_facts(config, dataset, trained, ledger, entry), changes=changes)
    page = render_report(evaluation, config, facts, _verdict_of(evaluation, config, ledger, entry))
    name = report_name(entry.evidence, entry.time)
    file = _run_folder(config, trained) / f"report-{name}.html"
    with complete_file(file) as draft:
        draft.write_text(page, encoding="utf-8")
    log_report_page(config, trained.run.tracking_run_id, name, file)
    return file


def _run_folder(config: RunConfig, trained: TrainedRef) -> Path:
    """The folder of the training on this machine, which may be another one than that which trained."""
    own, folder = Path(config.output_dir).resolve(), Path(trained.run.path)
    if not folder.is_relative_to(own):
        folder = own / folder.name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _verdict_of(evaluation: Path, config: RunConfig, ledger: Ledger, entry: Entry) -> Verdict:
    """The gate's verdict as it was when the entry was written, with the outcome that the entry has."""
    before = replace(ledger, entries=ledger.entries[: entry.number - 1])
    verdict = decide(load_evidence(evaluation), config, *before.uses_of(entry.row_sample))
    return replace(verdict, outcome=entry.outcome, reason=entry.reason, champion_failing=entry.champion_failing)


def _facts(config: RunConfig, dataset: DatasetRef, trained: TrainedRef, ledger: Ledger, entry: Entry) -> PageFacts:
    number = entry.version.number if entry.version else ""
    version = named_version(config, number) if number else None
    grids = data_grids(load_report(open_folder(dataset.folder, config)))
    return PageFacts(
        title=f"{config.registered_model_name} version {number}",
        lineage=lineage(config, dataset, trained, entry) | _uses(ledger, entry),
        commands=_commands(config, entry, ledger),
        grids=[grid for grid in grids if grid.rows],
        served_threshold=served_threshold(version) if version else None,
    )


def _uses(ledger: Ledger, entry: Entry) -> dict[str, str]:
    judged, promoted = replace(ledger, entries=ledger.entries[: entry.number]).uses_of(entry.row_sample)
    return {"uses of the held-out rows": f"candidates judged: {judged}, promoted: {promoted} (this one included)"}


def _commands(config: RunConfig, entry: Entry, ledger: Ledger) -> list[tuple[str, str]]:
    """What a person may do about the decision, each with what it does."""
    assert entry.version
    name, number = config.registered_model_name, entry.version.number
    until = replace(ledger, entries=ledger.entries[: entry.number])
    found = []
    if entry.after != entry.version:
        approves = f"approves: version {number} becomes champion"
        found.append((_command(config, "promote", name, number), approves))
    if entry.after != entry.version and entry.version.fingerprint not in until.withdrawn:
        rejects = f"rejects: version {number} is withdrawn, and no run promotes it; otherwise it stays a candidate"
        found.append((_command(config, "reject", name, number), rejects))
    if entry.after:
        earlier = until.earlier_champions
        target = f"version {earlier[-1].number}" if earlier else "no champion"
        to = [] if earlier else ["--to", "none"]
        undo = f"rolls back: withdraws version {entry.after.number}, the champion, and returns to {target}"
        found.append((_command(config, "rollback", name, *to), undo))
    return found


def _command(config: RunConfig, *words: str) -> str:
    return registry_command(config, *words, with_reason=True)
