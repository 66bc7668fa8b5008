"""The task that shows a finished run to people: an artifact in the Prefect UI, tables for the terminal."""

import base64
import json
from pathlib import Path

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact

from tasks.announcements import announce
from tasks.artifact_store import open_folder
from tasks.commands import registry_command
from tasks.ledger import Entry, read_ledger
from tasks.recovery import NETWORK
from tasks.refs import DatasetRef, EvalReport, FolderRef, ModelVersionRef, RunRef, TrainedRef
from tasks.report_page import publish_page
from tasks.tracking import fetch_evaluation, has_report_page, report_name, run_page
from tasks.versions import ADAPTER_TAG, named_version, version_id
from training_core.config import RunConfig
from training_core.dataset.store import load_report
from training_core.dataset.tables import account_grid
from training_core.distributed import ADAPTER_FOLDER
from training_core.escaping import in_markdown
from training_core.evaluation.comparison import load_scores
from training_core.evaluation.evidence import load_left_out
from training_core.evaluation.report import group_grid, score_grid
from training_core.grid import Grid
from training_core.trainer import SUMMARY_FILE


@task(task_run_name="publish report", **NETWORK)
def publish_report(config: RunConfig, dataset: DatasetRef, trained: TrainedRef, version: ModelVersionRef) -> str:
    """Put tables, pictures and the verdict into one artifact of the run, and publish the report page.

    Returns the path of the page on this machine. Retried because MLflow is reached over the network.
    """
    report_page = publish_page(config, dataset, trained, version)
    report = open_folder(trained.report.folder, config)
    pictures = [f"![{path.stem}]({_as_data_url(path)})" for path in sorted(report.glob("*.png"), reverse=True)]
    heading = in_markdown(f"{version.name} version {version.version} {version.verdict}")
    tables = [grid.markdown() for grid in run_grids(config, dataset, trained)]
    page = run_page(config, trained.run.tracking_run_id)
    links = [f"[Curve, predictions and model in MLflow]({page})"] if page else []
    command = registry_command(config, "report", f"models:/{version.name}/{version.version}")
    where = f"Report page: {in_markdown(f'{report_page}, or {command}')}"
    text = "\n\n".join([f"# {heading}", where, *links, *tables, *pictures])
    create_markdown_artifact(text, key="sft-flow-report", description=heading)
    return str(report_page)


@task(task_run_name="publish missing report", **NETWORK)
def publish_missing_report(config: RunConfig, dataset: DatasetRef, version: ModelVersionRef) -> None:
    """Announce and publish the gate's decision on a version, when the run that decided was killed before it did so.

    The report page is what a run publishes last. Retried because MLflow is reached over the network.
    """
    found, ledger = named_version(config, version.version), read_ledger(config)
    own = version_id(found)
    entry = ledger.last_by_gate(own.fingerprint) if own else None
    if found is None or entry is None or not entry.evidence:
        return
    if has_report_page(config, found.run_id, report_name(entry.evidence, entry.time)):
        return
    trained = _decided_on(config, dataset, entry, found.run_id, found.tags[ADAPTER_TAG])
    if trained is None:
        return
    get_run_logger().info("Version %s: a run that was killed left no report; it is published now", version.version)
    if entry.after == ledger.champion:
        announce(config.registered_model_name, entry)
    publish_report.fn(config, dataset, trained, version)


def _decided_on(
    config: RunConfig, dataset: DatasetRef, entry: Entry, run_id: str, adapter_digest: str
) -> TrainedRef | None:
    """The training and the evaluation that an entry is about; ``None`` when MLflow does not have the evaluation."""
    assert entry.version
    own, fingerprint = Path(config.output_dir).resolve(), entry.version.fingerprint
    evaluation, folder = own / "fetched" / entry.evidence[:16], own / fingerprint[:12]
    if not fetch_evaluation(config, run_id, entry.evidence, evaluation):
        return None
    run = RunRef(fingerprint, str(folder), dataset.base_digest, run_id)
    rows = load_scores(evaluation)["candidate"].rows
    report = EvalReport(FolderRef(str(evaluation), None, entry.evidence), rows, {}, {}, None)
    return TrainedRef(run, FolderRef(str(folder / ADAPTER_FOLDER), None, adapter_digest), report)


def run_grids(config: RunConfig, dataset: DatasetRef, trained: TrainedRef) -> list[Grid]:
    """The tables that a run ends with: scores, scores by group, row accounting, and what a training took."""
    report = open_folder(trained.report.folder, config)
    scores = load_scores(report)
    return [
        score_grid(scores, load_left_out(report)),
        group_grid(scores, config.group_by),
        account_grid(load_report(open_folder(dataset.folder, config)).accounts),
        *([_cost_grid(report / SUMMARY_FILE)] if (report / SUMMARY_FILE).is_file() else []),
    ]


def _cost_grid(summary: Path) -> Grid:
    cost = json.loads(summary.read_text(encoding="utf-8"))
    row = (
        str(cost["steps"]),
        str(cost["resumed_from_step"]),
        f"{cost['seconds']:.0f} s",
        f"{cost['peak_memory_gib']:.2f} GiB",
        f"{cost['final_loss']:.4f}",
    )
    return Grid("Training", ("steps", "resumed from step", "seconds since", "peak memory", "final loss"), [row])


def _as_data_url(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
