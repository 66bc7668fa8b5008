"""The folder of a trained adapter: all that is needed to use and to evaluate it."""

import json
import logging
from pathlib import Path

import numpy as np
from peft import PeftModel
from transformers import PreTrainedTokenizerFast

from training_core.config import RunConfig
from training_core.folders import complete_folder
from training_core.utils import log_system_info

logger = logging.getLogger(__name__)

_LEAKAGE_KEYS_FILE = "leakage_keys.npy"


def write_adapter(
    model: PeftModel, tokenizer: PreTrainedTokenizerFast, config: RunConfig, leakage_keys: np.ndarray, folder: Path
) -> None:
    """Write a folder with everything that is needed to use and to evaluate the adapter.

    Files: the adapter and its configuration, the tokenizer, ``leakage_keys.npy`` (of ``splits.training_leakage_keys``),
    ``run_config.json``, ``system.json``, ``manifest.json``. The folder exists only when it is complete.
    """
    with complete_folder(folder) as draft:
        model.save_pretrained(draft)
        (draft / "README.md").unlink(missing_ok=True)  # peft's empty model card
        tokenizer.save_pretrained(draft)
        config.save(draft)
        np.save(draft / _LEAKAGE_KEYS_FILE, leakage_keys)
        (draft / "system.json").write_text(json.dumps(log_system_info(), indent=2) + "\n", encoding="utf-8")


def load_leakage_keys(adapter: Path) -> np.ndarray:
    """The leakage keys of the rows that an adapter was trained on; none, and a warning, when it has no such file."""
    file = adapter / _LEAKAGE_KEYS_FILE
    if file.is_file():
        return np.load(file)
    logger.warning(
        "%s does not say what it was trained on (no %s); rows it has seen in training may be scored", adapter, file.name
    )
    return np.empty(0, np.uint64)
