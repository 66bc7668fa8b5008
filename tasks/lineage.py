"""What a version was made from: names, digests, dates and the commit of the code."""

import contextlib
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import training_core
from tasks.ledger import Entry
from tasks.refs import DatasetRef, TrainedRef
from tasks.tracking import connect
from training_core.config import RunConfig


def lineage(config: RunConfig, dataset: DatasetRef, trained: TrainedRef, entry: Entry) -> dict[str, str]:
    """Everything that identifies a decision and what it was about, by name."""
    return {
        "model": f"models:/{config.registered_model_name}/{_number(entry)}",
        "champion before": f"version {entry.before.number}" if entry.before else "none",
        "champion after": f"version {entry.after.number}" if entry.after else "none",
        "decision": f"{entry.number}, {entry.time[:16].replace('T', ' ')} UTC, by {entry.who}",
        "trained": _dates(config, trained.run.tracking_run_id),
        "code": code_commit(),
        "rows": config.dataset_path,
        "held-out rows from": config.eval_path or f"{config.val_split:g} of the rows, split_seed {config.split_seed}",
        "base model": config.model_name,
        "base commit": trained.run.base_commit or "none: a folder",
        "base digest": trained.run.base_digest,
        "training rows digest": dataset.digest,
        "held-out rows digest": entry.rows,
        "run fingerprint": trained.run.fingerprint,
        "adapter digest": trained.adapter.digest,
        "evaluation digest": entry.evidence,
        "promotion rule digest": entry.policy,
        "MLflow run": trained.run.tracking_run_id,
        "Prefect flow run": entry.flow_run or "none",
    }


def code_commit() -> str:
    """The commit of the checkout that this process runs, with ``-dirty`` when files differ from it."""
    root = Path(training_core.__file__).parents[1]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    found = None
    if (root / ".git").exists():  # or git would answer for a repository around an installed package
        with contextlib.suppress(FileNotFoundError):  # git is not installed
            found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found and found.returncode == 0 else "not a git checkout"


def _dates(config: RunConfig, run_id: str) -> str:
    info = connect(config).get_run(run_id).info
    dates = [datetime.fromtimestamp(one / 1000, UTC) for one in (info.start_time, info.end_time) if one]
    return f"{' to '.join(f'{date:%Y-%m-%d %H:%M}' for date in dates)} UTC, with its first evaluation"


def _number(entry: Entry) -> str:
    return entry.version.number if entry.version else ""
