"""The folder of a trained adapter: all that is needed to use and to evaluate it."""

import copy
import json
import logging
from pathlib import Path

import numpy as np
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from training_core.base_weights import text_prefix
from training_core.config import RunConfig, SettingsError
from training_core.dataset.answer_schema import Schema
from training_core.dataset.encoding import LEAKAGE_SCHEME, SECRET, keyed
from training_core.folders import complete_file, complete_folder
from training_core.packing.capabilities import kernels
from training_core.prompts.chat_templates import served_template
from training_core.utils import log_system_info

logger = logging.getLogger(__name__)

LEAKAGE_KEYS_FILE = "leakage_keys.npz"
SCHEMA_FILE = "answer_schema.json"


def write_adapter(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerFast,
    config: RunConfig,
    leakage_keys: np.ndarray,
    folder: Path,
    schema: Schema | None = None,
) -> None:
    """Write a folder with everything that is needed to use the adapter; it exists only when it is complete.

    Files: the adapter, its layers named as in the released base, and its configuration; the tokenizer, with a chat
    template that asks as in training; ``answer_schema.json``, the form of the training rows' answers, if given;
    ``run_config.json``, ``system.json``, ``manifest.json``. What it was trained on is not shipped with it: the leakage
    keys (of ``TrainingData``) are written next to the folder, as ``leakage_keys.npz``.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with complete_file(folder.parent / LEAKAGE_KEYS_FILE) as keys_draft, keys_draft.open("wb") as file:
        np.savez(file, keys=leakage_keys, secret=_digest_of_secret(), scheme=LEAKAGE_SCHEME)
    with complete_folder(folder) as draft:
        model.save_pretrained(draft)
        _name_as_released(draft / SAFETENSORS_WEIGHTS_NAME, Path(model.get_base_model().name_or_path))
        (draft / "README.md").unlink(missing_ok=True)  # peft's empty model card
        served = copy.copy(tokenizer)
        served.chat_template = served_template(tokenizer)
        served.save_pretrained(draft)
        config.save(draft)
        if schema is not None:
            (draft / SCHEMA_FILE).write_text(json.dumps(schema, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        system = log_system_info() | {"kernels": kernels(model, packing=config.packing)}
        (draft / "system.json").write_text(json.dumps(system, indent=2) + "\n", encoding="utf-8")


def _name_as_released(weights: Path, base: Path) -> None:
    """Call layers as the released base does, so that what serves it finds them: other names are ignored in silence."""
    prefix = text_prefix(base)
    if prefix != "model.":
        released = {name.replace(".model.model.", f".model.{prefix}", 1): w for name, w in load_file(weights).items()}
        save_file(released, weights, metadata={"format": "pt"})


def load_leakage_keys(run_dir: Path) -> np.ndarray:
    """The digests of what the adapter in a run's folder was trained on; none, and a warning, where they are missing.

    Those that an earlier version made in another way are used with a warning: not all of them match.
    Raises ``SettingsError`` when they were keyed with another secret than this process has.
    """
    file = run_dir / LEAKAGE_KEYS_FILE
    if not file.is_file():
        logger.warning("%s is missing: held-out rows that the adapter was trained on would be scored", file)
        return np.empty(0, np.uint64)
    with np.load(file) as kept:
        if int(kept["secret"]) != _digest_of_secret():
            what = f"{SECRET}: the leakage keys in {file} were written with another secret, or with none"
            raise SettingsError([f"{what}; set {SECRET} as it was when the adapter was trained"])
        if int(kept.get("scheme", 1)) != LEAKAGE_SCHEME:
            why = "held-out rows that an older version was trained on may not be recognised"
            logger.warning("%s was written by another version of sft-flow: %s", file, why)
        return np.asarray(kept["keys"])


def _digest_of_secret() -> int:
    """Tells secrets apart without giving any away; 0 where there is none."""
    return keyed([0])[0]
