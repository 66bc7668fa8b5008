"""Registered versions away from any run: compared on the same rows, or trained again from what the registry holds."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tasks.artifact_store import open_folder
from tasks.refs import RegisteredRef
from tasks.registered import (
    fetch_registered,
    registered_data,
    registered_dataset,
    registered_settings,
    rows_to_ask,
    served_settings,
)
from training_core.config import RunConfig
from training_core.dataset.store import TrainingData, load_training_data
from training_core.distributed import ADAPTER_FOLDER, train_adapter
from training_core.evaluation.comparison import EvaluatedModel, compare_models, load_scores, save_comparison
from training_core.evaluation.evidence import load_evidence, load_left_out
from training_core.evaluation.gate import decide
from training_core.evaluation.grammar import load_grammar
from training_core.evaluation.report import score_grid
from training_core.folders import MANIFEST
from training_core.grid import Grid
from training_core.model_setup import digest_base_model, load_adapted_model
from training_core.training.adapter import load_leakage_keys
from training_core.training.fingerprint import digest_rows, run_fingerprint
from training_core.training.gpu_lock import sole_use_of_gpu

WEIGHTS_FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class Reproduction:
    """Digests of the registered weights and of those trained again, and what differed in the making of them."""

    registered: str
    trained_again: str
    differences: list[str]


def compare_registered(versions: Sequence[tuple[RunConfig, str]], rows: str | None) -> tuple[Grid, str]:
    """Scores of two registered versions, and the gate's verdict on the first as if the second were champion.

    On ``rows``, or on those that the first was evaluated on; never on rows that one of the two was trained on. Nothing
    is decided or written to the registry.
    """
    (config, number), (_, other) = versions
    first, second = (fetch_registered(config, number) for config, number in versions)
    settings = served_settings(registered_settings(config, number), first)
    data = _data(settings, first, rows)
    with sole_use_of_gpu("a comparison of registered versions"):
        comparison = compare_models(_load(first), _load(second), data, settings)
    folder = Path(config.output_dir).resolve() / "compared" / f"{number}-{other}-{first.run.fingerprint[:12]}"
    save_comparison(comparison, folder, folder)
    names = {"candidate": f"version {number}", "champion": f"version {other}"}
    scores = {names.get(name, name): found for name, found in load_scores(folder).items()}
    return score_grid(scores, load_left_out(folder)), str(decide(load_evidence(folder), settings))


def reproduce(config: RunConfig, number: str) -> Reproduction:
    """Train a registered version again, from the rows, settings and base that its MLflow run names.

    Raises ``SettingsError`` when the run does not name its rows, and ``FileNotFoundError`` when they are neither on
    this machine nor in the artifact store.
    """
    registered = fetch_registered(config, number)
    settings = replace(registered_settings(config, number), model_name=registered.base)
    dataset = registered_dataset(config, registered)
    rows = open_folder(dataset.folder, config)
    folder = Path(config.output_dir).resolve() / "reproduced" / registered.run.fingerprint[:12]
    train_adapter(settings, rows, folder)
    base = digest_base_model(Path(registered.base))
    differences = [
        *(["the training rows"] if digest_rows(load_training_data(rows).train) != dataset.digest else []),
        *(["the base model"] if base != registered.run.base_digest else []),
    ]
    if not differences and run_fingerprint(settings, dataset.digest, base) != registered.run.fingerprint:
        differences = ["the training code or a setting"]
    before, after = _weights_digest(Path(registered.adapter.path)), _weights_digest(folder / ADAPTER_FOLDER)
    return Reproduction(before, after, differences)


def _weights_digest(adapter: Path) -> str:
    """SHA-256 of the weights alone: ``run_config.json`` next to them names the machine's folders."""
    return str(json.loads((adapter / MANIFEST).read_text(encoding="utf-8"))[WEIGHTS_FILE])


def _data(settings: RunConfig, registered: RegisteredRef, rows: str | None) -> TrainingData:
    """The rows to compare on, and training rows for the baselines: those of the version."""
    stored = registered_data(settings, registered)
    return stored if rows is None else replace(stored, held_out=rows_to_ask(settings, registered, rows))


def _load(registered: RegisteredRef) -> EvaluatedModel:
    loaded = load_adapted_model(Path(registered.base), Path(registered.adapter.path))
    grammar = load_grammar(Path(registered.adapter.path), loaded.tokenizer, registered.constrain)
    return EvaluatedModel(loaded, load_leakage_keys(Path(registered.run.path)), registered.max_new_tokens, grammar)
