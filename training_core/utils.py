"""What every run needs before it starts: logging, seed, cache, precision, checked settings, system facts."""

import json
import logging
import os
import platform
import random
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from pkgutil import resolve_name
from typing import Literal

import fsspec
import numpy as np
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import safe_open

from training_core.config import RunConfig, SettingsError
from training_core.local_base import base_folder
from training_core.rows.files import find_files

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Precision:
    """The number format of a run's computations and the sentence that says why it was chosen."""

    name: Literal["fp32", "fp16", "bf16"]
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[self.name]


def setup_logging(level: int = logging.INFO) -> None:
    """Show the log lines of ``training_core`` on the terminal; other loggers are left alone."""
    core = logging.getLogger("training_core")
    core.setLevel(level)
    core.propagate = False
    if not any(handler.get_name() == "terminal" for handler in core.handlers):
        terminal = logging.StreamHandler()
        terminal.set_name("terminal")
        terminal.setFormatter(logging.Formatter("%(asctime)s | %(levelname)-7s | %(message)s", "%H:%M:%S"))
        core.addHandler(terminal)


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def setup_cache(cache_dir: str | None) -> Path | None:
    """Create the folder for downloaded base models and return it; ``None`` leaves the choice to the hub.

    The hub's libraries read their environment when they are imported, so the folder is returned to be passed on,
    not put into the environment.
    """
    if cache_dir is None:
        return None
    folder = Path(cache_dir).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def pick_precision() -> Precision:
    """Decide once, for this machine, in which number format a run computes."""
    if not torch.cuda.is_available():
        return Precision("fp32", "fp32: no GPU here, and most CPUs emulate shorter formats at a fraction of the speed")
    card, capability = torch.cuda.get_device_name(), "{}.{}".format(*torch.cuda.get_device_capability())
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return Precision("bf16", f"bf16: {card} has it (compute capability {capability})")
    return Precision("fp16", f"fp16: {card} lacks bf16 (compute capability {capability})")


def validate_args(config: RunConfig) -> None:
    """Judge what no single setting can: files, base model, folders, contradictions. Loads nothing heavy.

    Raises ``SettingsError`` with every problem at once.
    """
    problems = [
        *_rows_problems("dataset_path", config.dataset_path),
        *(_rows_problems("eval_path", config.eval_path) if config.eval_path else []),
        *_base_model_problems(config),
        *_folder_problems("output_dir", config.output_dir),
        *_audit_problems("label_audit", config.label_audit),
        *_audit_problems("answer_audit", config.answer_audit),
        *_contradictions(config),
    ]
    if problems:
        raise SettingsError(problems)


def _rows_problems(name: str, value: str) -> list[str]:
    try:
        files = find_files(value)
        for file in files:
            with fsspec.open(file, "rb"):
                pass
    except FileNotFoundError:
        wanted = f"give --{name} a file, glob or folder of rows (here: {Path.cwd()})"
        return [f"{name}: {value!r} is or holds no file of rows; {wanted}"]
    except ImportError as error:
        return [f"{name}: {value!r} cannot be read: {error} (pip install 'sft-flow[s3]' for s3://, '[gcs]' for gs://)"]
    except (OSError, ValueError) as error:  # no permission, no connection, no such protocol
        return [f"{name}: {value!r} cannot be read: {error}"]
    return []


def _audit_problems(name: str, value: str | None) -> list[str]:
    try:
        return [] if value is None or callable(resolve_name(value)) else [f"{name}: {value!r} is no function"]
    except (ImportError, AttributeError, ValueError) as error:
        return [f"{name}: {value!r} cannot be imported: {error}"]


def _base_model_problems(config: RunConfig) -> list[str]:
    folder = base_folder(config.model_name)
    if folder:
        return _base_folder_problems(config, folder)
    try:
        hf_hub_download(config.model_name, "config.json", cache_dir=config.cache_dir)
    except LocalEntryNotFoundError:
        cause = "the hub cannot be reached from here"
    except (HFValidationError, OSError) as error:
        cause = f"cannot be had from the hub ({str(error).splitlines()[0]})"
    else:
        return []
    fix = "give --model_name the folder of a base model"
    return [f"model_name: {config.model_name!r} is no local folder, and {cause}; {fix}"]


def _base_folder_problems(config: RunConfig, folder: Path) -> list[str]:
    lacking = [name for name in ("config.json", "tokenizer_config.json") if not (folder / name).is_file()]
    weights = sorted(folder.glob("*.safetensors"))
    lacking += [] if weights else ["*.safetensors"]
    if lacking:
        return [f"model_name: {config.model_name!r} lacks {name}; it is no complete base model" for name in lacking]
    problems = []
    template = (folder / "chat_template.jinja").is_file() or "chat_template" in json.loads(
        (folder / "tokenizer_config.json").read_text(encoding="utf-8")
    )
    if not template:
        problems.append(f"model_name: {config.model_name!r} has no chat template; use an instruct model")
    if config.target_modules != "auto":
        layers = {part for path in weights for name in _tensor_names(path) for part in name.split(".")}
        unknown = [name for name in map(str.strip, config.target_modules.split(",")) if name and name not in layers]
        problems += [f"target_modules: {config.model_name!r} has no layer called {name!r}" for name in unknown]
    return problems


def _tensor_names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def _folder_problems(name: str, value: str) -> list[str]:
    folder = Path(value).resolve()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir():
        return [f"{name}: {value!r} cannot be created: {existing} is a file"]
    if not os.access(existing, os.W_OK):
        return [f"{name}: {value!r} cannot be written: {existing} is not writable"]
    return []


def _contradictions(config: RunConfig) -> list[str]:
    problems = []
    if not config.eval_path and config.val_split == 0:
        problems.append("val_split: 0 without eval_path leaves no rows to evaluate on; give one of the two")
    if config.eval_path and Path(config.eval_path).resolve() == Path(config.dataset_path).resolve():
        problems.append(f"eval_path: {config.eval_path!r} is dataset_path itself; held-out rows must be other rows")
    if config.target_modules != "auto" and not all(part.strip() for part in config.target_modules.split(",")):
        problems.append(f"target_modules: {config.target_modules!r} has an empty name; write e.g. q_proj,v_proj")
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
