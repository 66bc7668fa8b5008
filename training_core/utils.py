"""What every run needs before it starts: logging, seed, cache, precision, validated settings, system facts."""

import json
import logging
import os
import platform
import random
import traceback
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RevisionNotFoundError

from training_core.base_model import base_folder
from training_core.base_support import support_problems
from training_core.base_weights import file_problems
from training_core.config import LONGEST_VALUE, RunConfig, SettingsError
from training_core.escaping import shown
from training_core.rows.files import client_errors_as_os_errors, open_file
from training_core.rows.locate import find_files
from training_core.rows.strict_json import DataError
from training_core.user_functions import UserFunction

logger = logging.getLogger(__name__)

_NOT_IN_ADDRESSES = "?#%;"
_MOST_REASONS = 10


@dataclass(frozen=True)
class Precision:
    """The number format of a run's computations and the sentence that says why it was chosen."""

    name: Literal["fp32", "fp16", "bf16"]
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[self.name]


def setup_logging(level: int = logging.INFO) -> None:
    """Show the log lines of ``training_core`` on the terminal. From now on no logger of this process writes a password
    or a control character that a file name or an error message has; else other loggers do not change."""
    logging.setLogRecordFactory(_shown_record)
    core = logging.getLogger("training_core")
    core.setLevel(level)
    core.propagate = False
    if not any(handler.get_name() == "terminal" for handler in core.handlers):
        terminal = logging.StreamHandler()
        terminal.set_name("terminal")
        terminal.setFormatter(logging.Formatter("%(asctime)s | %(levelname)-7s | %(message)s", "%H:%M:%S"))
        core.addHandler(terminal)


def _shown_record(*arguments: Any, **more: Any) -> logging.LogRecord:
    record = logging.LogRecord(*arguments, **more)
    # uvicorn's formatter reads the arguments; a record without a name is filled in by logging.makeLogRecord.
    if record.name and not record.name.startswith("uvicorn"):
        record.msg, record.args = shown(record.getMessage()), ()
    if record.exc_info:
        record.exc_text = shown(_described(record.exc_info[1]))
    return record


def _described(error: BaseException | None) -> str:
    """An error of settings or rows is a message to people; any other is one to developers, with its traceback."""
    if isinstance(error, SettingsError | DataError):
        return str(error)
    return "".join(traceback.format_exception(error)).rstrip()


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def setup_cache(cache_dir: str | None) -> Path | None:
    """Create the folder for downloaded base models and return it; ``None`` is the hub's default folder.

    The hub's libraries read environment variables when they are imported, so callers pass the folder on explicitly.
    """
    if cache_dir is None:
        return None
    folder = Path(cache_dir).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def pick_precision(wanted: Literal["auto", "bf16", "fp16", "fp32"] = "auto") -> Precision:
    """The number format of the setting ``precision`` on this machine.

    Raises ``SettingsError`` where the machine does not compute in it.
    """
    if not torch.cuda.is_available():
        return _precision_of_cpu(wanted)
    card = "{} (compute capability {}.{})".format(torch.cuda.get_device_name(), *torch.cuda.get_device_capability())
    supported = torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted == "bf16" and not supported:
        raise SettingsError([f"precision: {card} does not compute in bf16; set precision auto"])
    if wanted != "auto":
        return Precision(wanted, f"{wanted}: the setting precision names it, on {card}")
    if supported:
        return Precision("bf16", f"bf16: {card} supports it")
    return Precision("fp16", f"fp16: {card} does not support bf16")


def _precision_of_cpu(wanted: Literal["auto", "bf16", "fp16", "fp32"]) -> Precision:
    if wanted == "fp16":
        raise SettingsError(["precision: fp16 needs a GPU, found none; set precision auto"])
    if wanted != "auto":
        return Precision(wanted, f"{wanted}: the setting precision names it, on a CPU")
    return Precision("fp32", "fp32: no GPU, and most CPUs emulate shorter formats at a fraction of the speed")


def validate_args(config: RunConfig) -> None:
    """Check what a single setting cannot show: files, base model, layers of the adapter, folders, contradictions.

    Reads no weights. Raises ``SettingsError`` with every problem at once.
    """
    problems = [
        *_rows_problems("dataset_path", config.dataset_path),
        *(_rows_problems("eval_path", config.eval_path) if config.eval_path else []),
        *_base_model_problems(config),
        *_folder_problems("output_dir", config.output_dir),
        *_output_among_rows(config),
        *_audit_problems("label_audit", config.label_audit),
        *_audit_problems("answer_audit", config.answer_audit),
        *_contradictions(config),
        *(_precision_problems(config) if config.train_on is None else []),
    ]
    if problems:
        raise SettingsError(problems)


def _precision_problems(config: RunConfig) -> list[str]:
    """Why this machine cannot compute in the precision of the settings."""
    try:
        pick_precision(config.precision)
    except SettingsError as error:
        return error.problems
    return []


def _rows_problems(name: str, value: str) -> list[str]:
    try:
        with client_errors_as_os_errors():
            for file in find_files(value):
                with open_file(file):
                    pass
    except FileNotFoundError as error:
        fix = f"give --{name} a file, glob or folder of rows (working directory: {Path.cwd()})"
        reasons = str(error).splitlines()[1:]
        return [
            "\n".join([f"{name}: {value[:LONGEST_VALUE]!r} holds no file of rows; {fix}", *reasons[:_MOST_REASONS]])
        ]
    except ImportError as error:
        return [f"{name}: cannot read {value!r}: {error} (pip install 'sft-flow[s3]' for s3://, '[gcs]' for gs://)"]
    except (OSError, ValueError) as error:  # no permission, no connection, no such protocol
        return [f"{name}: cannot read {value!r}: {error}"]
    return []


def _audit_problems(name: str, value: str | None) -> list[str]:
    try:
        if value:
            UserFunction.load(name, value)
    except SettingsError as error:
        return error.problems
    return []


def _base_model_problems(config: RunConfig) -> list[str]:
    folder = base_folder(config.model_name)
    if not folder and os.path.exists(config.model_name):  # noqa: PTH110
        return [f"model_name: {config.model_name!r} is a file; give the folder of a base model"]
    if folder:
        problems = _base_folder_problems(config, folder) or support_problems(config, folder)
        return [*_unused_revision(config), *problems]
    try:
        downloaded = hf_hub_download(
            config.model_name, "config.json", revision=config.model_revision or None, cache_dir=config.cache_dir
        )
    except RevisionNotFoundError:
        fix = "give a commit, tag or branch of it"
        return [f"model_revision: the hub has no {config.model_revision!r} of {config.model_name!r}; {fix}"]
    except LocalEntryNotFoundError:
        cause = "the hub cannot be reached"
    except (HFValidationError, OSError) as error:
        cause = f"the hub does not give it ({str(error).splitlines()[0]})"
    else:
        return support_problems(config, Path(downloaded).parent)
    fix = "give --model_name the folder of a base model"
    return [f"model_name: {config.model_name!r} is not a folder on this machine, and {cause}; {fix}"]


def _unused_revision(config: RunConfig) -> list[str]:
    if not config.model_revision:
        return []
    what = f"{config.model_revision!r} names files on the hub, but {config.model_name!r} is a folder on this machine"
    return [f"model_revision: {what}; leave it empty"]


def _base_folder_problems(config: RunConfig, folder: Path) -> list[str]:
    missing = [name for name in ("config.json", "tokenizer_config.json") if not os.path.lexists(folder / name)]
    if problems := [
        *(f"model_name: {config.model_name!r} lacks {name}; give a complete base model" for name in missing),
        *file_problems(folder),
    ]:
        return problems
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if (folder / "chat_template.jinja").is_file() or "chat_template" in tokenizer:
        return []
    return [f"model_name: {config.model_name!r} has no chat template; use an instruct model"]


def _output_among_rows(config: RunConfig) -> list[str]:
    """An output folder that is read as rows would change them with every run."""
    if _folder_problems("output_dir", config.output_dir):
        return []
    output = Path(config.output_dir).resolve()
    for name, path in (("dataset_path", config.dataset_path), ("eval_path", config.eval_path)):
        # Unlike Path.is_dir, os.path.isdir accepts a name of any length.
        if path and os.path.isdir(path) and output.is_relative_to(Path(path).resolve()):  # noqa: PTH112
            what = f"{config.output_dir!r} is in the folder of rows {path!r}, and its files would be read as rows"
            return [f"output_dir: {what}; give a folder outside {name}"]
    return []


def _folder_problems(name: str, value: str) -> list[str]:
    if "://" in value or value.startswith("~"):
        what = "is the address of a store" if "://" in value else "begins with ~, which only a shell reads as your home"
        return [f"{name}: {value!r} {what}; give a folder of this machine"]
    try:
        problem = _folder_problem(value, Path(value).resolve())
    except (OSError, RuntimeError) as error:  # too long a name, or links in a circle
        cause = error.strerror if isinstance(error, OSError) else "its links lead in a circle"
        problem = f"cannot use {value[:LONGEST_VALUE]!r}: {cause}; give another folder"
    return [f"{name}: {problem}"] if problem else []


def _folder_problem(value: str, folder: Path) -> str:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    for part in folder.parts:  # each may be too long, below a folder that is not there yet
        (existing / part).exists()
    if bad := [sign for sign in dict.fromkeys(str(folder)) if sign in _NOT_IN_ADDRESSES or not sign.isprintable()]:
        what = f"{str(folder)!r} has {', '.join(map(ascii, bad))}"
        return f"{what}, which the addresses of its databases cannot hold; give a folder without"
    if not existing.is_dir():
        return f"cannot create {value!r}: {existing} is a file; give another folder"
    if not os.access(existing, os.W_OK):
        return f"cannot write to {value!r}: no permission to write in {existing}; give another folder"
    return ""


def _contradictions(config: RunConfig) -> list[str]:
    problems = []
    if not config.eval_path and config.val_split == 0:
        problems.append("val_split: 0 without eval_path leaves no rows to evaluate on; set one of the two")
    if config.eval_path and Path(config.eval_path).resolve() == Path(config.dataset_path).resolve():
        problems.append(f"eval_path: {config.eval_path!r} is dataset_path itself; give other rows to hold out")
    if config.target_modules != "auto" and not all(part.strip() for part in config.target_modules.split(",")):
        problems.append(f"target_modules: {config.target_modules!r} has an empty name; write for example q_proj,v_proj")
    return problems


def log_system_info() -> dict[str, str]:
    """Log the machine and the versions a result depends on, and return them for ``system.json``."""
    packages = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    facts = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": str(os.cpu_count()),
        "gpu": gpu,
        **{package: version(package) for package in packages},
    }
    logger.info("System: %s", ", ".join(f"{name} {value}" for name, value in facts.items()))
    return facts
