"""Encoded rows on disk: written once, found again by what they were made from."""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

from datasets import Dataset, load_from_disk

from training_core.checkpoints import seal, seal_digest
from training_core.config import RunConfig
from training_core.data_loader import Account, DataReport, TrainingData
from training_core.rows import Problem

_SETTINGS = (
    *("dataset_path", "eval_path", "val_split", "seed"),
    *("max_seq_length", "overlong", "max_refused_share", "group_by"),
)
_CODE = ("rows.py", "data_loader.py", "chat_encoding.py")


def data_key(config: RunConfig, base: Path) -> str:
    """SHA-256 over all that encoded rows are made from: files, settings, tokenizer, and the code that makes them."""
    sources = [Path(path).read_bytes() for path in (config.dataset_path, config.eval_path) if path]
    small_files = {path for pattern in ("*.json", "*.txt", "*.jinja") for path in base.glob(pattern)}
    tokenizer = [path.read_bytes() for path in sorted(small_files)]
    code = [(Path(__file__).parent / name).read_bytes() for name in _CODE]
    settings = repr({name: getattr(config, name) for name in _SETTINGS}).encode()
    digests = [hashlib.sha256(part).digest() for part in (*sources, *tokenizer, *code, settings)]
    return hashlib.sha256(b"".join(digests)).hexdigest()


def save_training_data(data: TrainingData, folder: Path) -> None:
    """Write ``train/``, ``held_out/``, ``report.json`` and ``refused.jsonl``: the whole folder, or none of it."""
    draft = folder.with_name(f"{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    data.train.save_to_disk(draft / "train")
    data.held_out.save_to_disk(draft / "held_out")
    (draft / "report.json").write_text(json.dumps(asdict(data.report), indent=1) + "\n", encoding="utf-8")
    (draft / "refused.jsonl").write_bytes(b"".join(data.refused))
    seal(draft)
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)


def load_training_data(folder: Path) -> TrainingData:
    """What ``save_training_data`` wrote. Raises ``FileNotFoundError`` when the folder is not complete."""
    if not seal_digest(folder):
        raise FileNotFoundError(f"{folder} is missing, incomplete or damaged; build the dataset again")
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return TrainingData(
        train=_load(folder / "train"),
        held_out=_load(folder / "held_out"),
        report=DataReport(
            accounts=[Account(**account) for account in report["accounts"]],
            decisions=report["decisions"],
            problems=[Problem(**problem) for problem in report["problems"]],
        ),
        refused=[raw + b"\n" for raw in (folder / "refused.jsonl").read_bytes().split(b"\n")[:-1]],
    )


def _load(folder: Path) -> Dataset:
    rows = load_from_disk(str(folder))
    assert isinstance(rows, Dataset)
    return rows
