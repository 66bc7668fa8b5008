"""Loads a folder of encoded rows and their report, and checks that the rows are fit to train on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset

from training_core.config import RunConfig, SettingsError, settings_info
from training_core.dataset.encoding import keyed
from training_core.dataset.report import DataReport
from training_core.folders import seal_digest
from training_core.rows.strict_json import DataError

TRAIN_FILE, HELD_OUT_FILE, REPORT_FILE, PAGE_FILE = "train.arrow", "held_out.arrow", "report.json", "report.html"
LEAKAGE_KEYS_FILE = "leakage_keys.npy"

_MAX_SHOWN = 20
_FIXES = {
    "group_by": "name the field that says what kind of case a row is",
    "entity_fields": "correct the names or leave them out; []: no field identifies an entity",
    "slice_fields": "correct the names or leave them out",
}


@dataclass(frozen=True)
class TrainingData:
    """Encoded rows, memory-mapped, the report on them, and their ``splits.training_leakage_keys``, keyed as in
    ``encoding.keyed``.

    Columns: ``input_ids`` and ``labels`` (int32 lists of equal length; only tokens of the answer have labels),
    ``line``, ``decision``, and ``group``, the value of the case's field ``group_by``. Held-out rows also have ``file``
    and ``record``, the row as JSON.
    """

    train: Dataset
    held_out: Dataset
    report: DataReport
    leakage_keys: np.ndarray


def load_report(folder: Path) -> DataReport:
    """The report in a folder written by ``prepare_data``."""
    return DataReport.load(folder / REPORT_FILE)


def load_training_data(folder: Path) -> TrainingData:
    """The rows in a folder written by ``prepare_data``.

    Raises ``FileNotFoundError`` if it is not complete, and ``DataError`` if its rows are not fit to train on.
    """
    if not seal_digest(folder):
        raise FileNotFoundError(f"expected a complete dataset in {folder}, it is missing or damaged; build it again")
    report = load_report(folder)
    require_fit_rows(report)
    train, held_out = (Dataset.from_file(str(folder / name)) for name in (TRAIN_FILE, HELD_OUT_FILE))
    keys = np.array(keyed(np.load(folder / LEAKAGE_KEYS_FILE)), np.uint64)
    return TrainingData(train, held_out, report, keys)


def require_fit_rows(report: DataReport) -> None:
    """Raises ``DataError`` with every broken rule and the first problems if the rows are not fit to train on."""
    if report.failures:
        problems = [f"  - {problem}" for problem in report.problems[:_MAX_SHOWN]]
        more = sum(account.rejected for account in report.accounts) - len(problems)
        rest = [f"  … and {more} more; `sft-flow check` shows them"] if more > 0 else []
        raise DataError("\n".join(["The rows are not fit to train on.", *report.failures, *problems, *rest]))


def require_known_names(report: DataReport, config: RunConfig) -> None:
    """Raises ``SettingsError`` if settings name decisions or fields that no row has.

    Without a favourable decision false approvals would be 0 for every model; without its ``group_by`` the lookup table
    would be a majority vote, and an adapter easily better; other fields would silently have no effect.
    """
    if problems := [*_unknown_decisions(report, config), *_unknown_fields(report, config)]:
        raise SettingsError(problems)


def _unknown_decisions(report: DataReport, config: RunConfig) -> Iterator[str]:
    occurring = [count.decision for count in report.decisions]
    if occurring and config.favourable_decisions and not set(config.favourable_decisions) & set(occurring):
        fix = "name those in the customer's favour, or [] if there are none"
        what = f"no row holds {_listed(config.favourable_decisions)}; the rows hold {_listed(occurring)}"
        yield f"favourable_decisions: {what}; {fix}"


def _unknown_fields(report: DataReport, config: RunConfig) -> Iterator[str]:
    """A default names what is common, so rows need not have it; only ``group_by`` must exist where there are cases."""
    known = _listed(report.case_fields) or "no fields: no row has a case"
    for setting in ("group_by", "entity_fields", "slice_fields"):
        value = getattr(config, setting)
        names = (value,) if setting == "group_by" else value
        missing = [name for name in names if name not in report.case_fields]
        if missing and (value != settings_info()[setting].default or (setting == "group_by" and report.case_fields)):
            yield f"{setting}: no row has {_listed(missing)}; the cases have {known}; {_FIXES[setting]}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {rest} more" if (rest := len(names) - _MAX_SHOWN) > 0 else ""
    return ", ".join(map(repr, names[:_MAX_SHOWN])) + more
