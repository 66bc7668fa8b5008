"""Encoded rows on disk: made once, found again by what they were made from."""

import hashlib
import inspect
import logging
import shutil
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
from datasets import Dataset
from filelock import FileLock

from training_core.checkpoints import seal, seal_digest
from training_core.config import RunConfig, SettingsError
from training_core.data_loader import HELD_OUT_FILE, REPORT_FILE, TRAIN_FILE, TRAINED_ON_FILE, build_datasets
from training_core.data_page import TEMPLATE
from training_core.data_report import DataReport
from training_core.model_setup import SMALL_FILES, load_tokenizer
from training_core.row_files import digest_files
from training_core.rows import DataError

logger = logging.getLogger(__name__)

_MOST_SHOWN = 20
_SETTINGS = (
    *("dataset_path", "eval_path", "val_split", "entity_fields", "overlap", "seed", "max_seq_length", "overlong"),
    *("allowed_decisions", "max_refused_share", "label_audit", "group_by"),
    *("packing", "per_device_train_batch_size", "gradient_accumulation_steps"),  # the gain that the report expects
)
_CODE = (
    *("rows.py", "row_files.py", "row_formats.py", "row_reader.py", "row_encoding.py", "row_survey.py", "splits.py"),
    *("messages.py", "chat_encoding.py", "policy_trimming.py", "data_loader.py", "data_findings.py", "packing.py"),
    *("data_report.py", "data_tables.py", "data_page.py", "grid.py", TEMPLATE),
)


@dataclass(frozen=True)
class TrainingData:
    """Encoded rows, memory-mapped, the report on them, and the digests of ``splits.trained_on``.

    Columns: ``input_ids`` and ``labels`` (int32 lists of one length; the answer carries labels, the prompt does not),
    ``line``, ``decision``, and ``group``, the value of the case's field ``group_by``; held-out rows also have
    ``file`` and ``record``, the row as JSON.
    """

    train: Dataset
    held_out: Dataset
    report: DataReport
    trained_on: np.ndarray


def prepare_data(config: RunConfig, base: Path) -> Path:
    """The folder of a run's rows, encoded by the base's tokenizer and reported on: made now, or found.

    Raises ``OSError`` when the rows cannot be found, and ``DataError`` when they change meanwhile. Whether they are fit
    to train on, the report says.
    """
    key = data_key(config, base)
    folder = Path(config.output_dir).resolve() / "datasets" / key[:12]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if seal_digest(folder):
            logger.info("Rows reused: nothing they are made from has changed since %s was written", folder)
            return folder
        draft = folder.with_name(f"{folder.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        build_datasets(config, load_tokenizer(base), draft)
        if data_key(config, base) != key:
            raise DataError("The rows changed while they were read; run again when they are written")
        seal(draft)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    return folder


def data_key(config: RunConfig, base: Path) -> str:
    """SHA-256 over all that encoded rows are made from: files, settings, tokenizer, and the code that makes them."""
    sources = [digest_files(path) for path in (config.dataset_path, config.eval_path) if path]
    small_files = {path for pattern in SMALL_FILES for path in base.glob(pattern)}
    tokenizer = [path.read_bytes() for path in sorted(small_files)]
    code = [(Path(__file__).parent / name).read_bytes() for name in _CODE]
    code += [path.read_bytes() for path in _code_of(config.label_audit)] if config.label_audit else []
    settings = repr({name: getattr(config, name) for name in _SETTINGS}).encode()
    digests = [hashlib.sha256(part).digest() for part in (*sources, *tokenizer, *code, settings)]
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _code_of(function: str) -> list[Path]:
    """The files of the module or the whole package that a function ``module:name`` stands in."""
    home = Path(inspect.getfile(import_module(function.partition(":")[0].partition(".")[0])))
    files = home.parent.rglob("*") if home.name == "__init__.py" else [home]
    return sorted(path for path in files if path.is_file() and "__pycache__" not in path.parts)


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
    demand_fitness(report)
    sides = _load(folder / TRAIN_FILE), _load(folder / HELD_OUT_FILE)
    return TrainingData(*sides, report, np.load(folder / TRAINED_ON_FILE))


def demand_fitness(report: DataReport) -> None:
    """Raises ``DataError`` with every rule that is broken and the first problems, unless the rows are fit."""
    if report.failures:
        problems = [f"  - {problem}" for problem in report.problems[:_MOST_SHOWN]]
        more = sum(account.refused for account in report.accounts) - len(problems)
        rest = [f"  … and {more} more; `sft-flow check` shows them"] if more > 0 else []
        raise DataError("\n".join(["The rows are not fit to train on.", *report.failures, *problems, *rest]))


def demand_known_favour(report: DataReport, config: RunConfig) -> None:
    """Raises ``SettingsError`` when no row holds any of ``favourable_decisions``: every model would be shown to give
    nothing away, and a promotion would be guarded by nothing."""
    occurring = [count.decision for count in report.decisions]
    if occurring and config.favourable_decisions and not set(config.favourable_decisions) & set(occurring):
        wanted = ", ".join(map(repr, config.favourable_decisions))
        found = ", ".join(map(repr, occurring[:_MOST_SHOWN]))
        more = f" and {rest} more" if (rest := len(occurring) - _MOST_SHOWN) > 0 else ""
        remedy = "name those in the customer's favour, or [] if there are none"
        raise SettingsError([f"favourable_decisions: no row holds {wanted}; the rows hold {found}{more}; {remedy}"])


def _load(file: Path) -> Dataset:
    return Dataset.from_file(str(file))
