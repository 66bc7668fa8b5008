"""Encoded rows on disk: made once, found again by what they were made from."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset

from training_core.config import RunConfig, SettingsError
from training_core.dataset.encoding import keyed
from training_core.dataset.report import DataReport
from training_core.folders import seal_digest
from training_core.rows.strict_json import DataError

TRAIN_FILE, HELD_OUT_FILE, REPORT_FILE, PAGE_FILE = "train.arrow", "held_out.arrow", "report.json", "report.html"
LEAKAGE_KEYS_FILE = "leakage_keys.npy"

_MOST_SHOWN = 20


@dataclass(frozen=True)
class TrainingData:
    """Encoded rows, memory-mapped, the report on them, and the digests of ``splits.training_leakage_keys``,
    keyed as in ``encoding.keyed``.

    Columns: ``input_ids`` and ``labels`` (int32 lists of one length; the answer carries labels, the prompt does not),
    ``line``, ``decision``, and ``group``, the value of the case's field ``group_by``; held-out rows also have
    ``file`` and ``record``, the row as JSON.
    """

    train: Dataset
    held_out: Dataset
    report: DataReport
    leakage_keys: np.ndarray


def load_report(folder: Path) -> DataReport:
    """The report in a folder of ``prepare_data``."""
    return DataReport.load(folder / REPORT_FILE)


def load_training_data(folder: Path) -> TrainingData:
    """The rows in a folder of ``prepare_data``.

    Raises ``FileNotFoundError`` when it is not complete, and ``DataError`` when its rows are not fit to train on.
    """
    if not seal_digest(folder):
        raise FileNotFoundError(f"{folder} is missing, incomplete or damaged; build the dataset again")
    report = load_report(folder)
    require_fit_rows(report)
    sides = _load(folder / TRAIN_FILE), _load(folder / HELD_OUT_FILE)
    return TrainingData(*sides, report, np.array(keyed(np.load(folder / LEAKAGE_KEYS_FILE)), np.uint64))


def require_fit_rows(report: DataReport) -> None:
    """Raises ``DataError`` with every rule that is broken and the first problems, unless the rows are fit."""
    if report.failures:
        problems = [f"  - {problem}" for problem in report.problems[:_MOST_SHOWN]]
        more = sum(account.rejected for account in report.accounts) - len(problems)
        rest = [f"  … and {more} more; `sft-flow check` shows them"] if more > 0 else []
        raise DataError("\n".join(["The rows are not fit to train on.", *report.failures, *problems, *rest]))


def require_known_favourable_decisions(report: DataReport, config: RunConfig) -> None:
    """Raises ``SettingsError`` when no row holds any of ``favourable_decisions``: every model would be shown to give
    nothing away, and a promotion would be guarded by nothing."""
    occurring = [count.decision for count in report.decisions]
    if occurring and config.favourable_decisions and not set(config.favourable_decisions) & set(occurring):
        wanted = ", ".join(map(repr, config.favourable_decisions))
        found = ", ".join(map(repr, occurring[:_MOST_SHOWN]))
        more = f" and {rest} more" if (rest := len(occurring) - _MOST_SHOWN) > 0 else ""
        fix = "name those in the customer's favour, or [] if there are none"
        raise SettingsError([f"favourable_decisions: no row holds {wanted}; the rows hold {found}{more}; {fix}"])


def _load(file: Path) -> Dataset:
    return Dataset.from_file(str(file))
