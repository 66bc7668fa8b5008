"""Small adapters of the tiny base and their answers to held-out rows, each made once and kept in a folder."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset

from samples.cases import generate_rows, policy_text
from training_core.config import RunConfig, read_settings, read_settings_file
from training_core.data_loader import prepare_data
from training_core.dataset.store import TrainingData, load_training_data
from training_core.evaluation.comparison import comparison_key
from training_core.evaluation.evidence import Evidence, EvidenceRow, evidence_of, evidence_rows
from training_core.evaluation.generation import generate
from training_core.evaluation.scores import (
    Prediction,
    evaluate_model,
    predict_by_lookup,
    predict_by_majority,
    prompt_of,
    with_example_texts,
)
from training_core.evaluation.text_scores import DECISION, AnswerJudge, read_training_answers
from training_core.folders import complete_file, seal_digest
from training_core.model_setup import (
    LoadedModel,
    digest_base_model,
    fetch_base_model,
    load_adapted_model,
    load_model_and_tokenizer,
    load_tokenizer,
)
from training_core.prompts.chat_encoding import ChatEncoder
from training_core.trainer import train_model
from training_core.training.adapter import write_adapter
from training_core.training.fingerprint import digest_rows, run_fingerprint

DEMO_CONFIG = Path(__file__).parent.parent / "configs" / "demo.yaml"
POLICY, LINES, ROWS_SEED = "warranty", 600, 7
FRESH_LINES, FRESH_SEED = 650, 8  # further rows, nearly all held out, that tell which of two adapters is better
DECISION_TOKENS = 12  # of an answer up to the end of its decision, its first field
CURVE_ROWS = 4  # held-out rows of the loss curve: nobody looks at it here, and it costs as much as the training

# What differs from the demo: rows of one policy, half of them held out, and so few steps that many adapters are
# affordable and still decide far better than the lookup table.
SETTINGS: Mapping[str, Any] = {
    "val_split": 0.5,
    "slice_fields": ["damage_cause"],
    "max_steps": 16,
    "eval_batch_size": 320,
    "learning_rate": 8.0e-3,
    "seed": 1,
}


@dataclass(frozen=True)
class Bench:
    """The rows, encoded, and how every answer to them is judged. ``config`` has the settings that adapters share."""

    config: RunConfig
    base: Path
    data: TrainingData
    judge: AnswerJudge
    rows: list[EvidenceRow]
    policies: dict[str, str]
    baselines: dict[str, list[Prediction]]

    def evidence(self, models: Mapping[str, Sequence[Prediction]]) -> Evidence:
        """What the gate decides on: these models' answers and those of the two baselines."""
        return evidence_of(self.rows, {**models, **self.baselines}, policies=self.policies)


def write_sample_rows(path: Path, lines: int, seed: int = ROWS_SEED) -> None:
    """Write the sample rows of one policy, as many of each of its issue types."""
    text = policy_text(POLICY)
    found = (row for row in generate_rows(20 * lines, seed) if row["input"]["policy_document"] == text)
    with complete_file(path) as draft:
        draft.write_text("".join(f"{json.dumps(row)}\n" for row in islice(found, lines)), encoding="utf-8")


def open_bench(folder: Path, lines: int = LINES, **settings: Any) -> Bench:
    """The benchmark's rows, written and encoded in a folder unless they are there; the settings are RunConfig's."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{POLICY}.jsonl"
    if not path.is_file():
        write_sample_rows(path, lines)
    places = {"dataset_path": str(path), "output_dir": str(folder)}
    config = read_settings(read_settings_file(DEMO_CONFIG) | dict(SETTINGS) | places | settings)
    base = fetch_base_model(config.model_name, config.cache_dir, config.model_revision)
    return bench_of(config, base, load_training_data(prepare_data(config, base)))


def bench_of(config: RunConfig, base: Path, data: TrainingData) -> Bench:
    """The same for encoded rows."""
    learnt = read_training_answers(data.train, ChatEncoder.of(load_tokenizer(base)))
    judge = AnswerJudge.of(config, learnt.exact_fields)
    baselines = {
        "majority": predict_by_majority(data.train, data.held_out),
        "lookup table": predict_by_lookup(data.train, data.held_out),
    }
    baselines = {name: with_example_texts(found, data.held_out, learnt, judge) for name, found in baselines.items()}
    return Bench(config, base, data, judge, *evidence_rows(data.held_out, config.entity_fields), baselines)


@dataclass(frozen=True)
class Trained:
    """A finished adapter, the CPU seconds of its training and evaluation, and its answers to the held-out rows."""

    adapter: Path
    training_seconds: float
    evaluation_seconds: float
    answers: list[Prediction]


def trained(bench: Bench, **settings: Any) -> Trained:
    """Train an adapter with other settings and let it answer, unless its folder has both from an earlier run."""
    config = replace(bench.config, **settings)
    fingerprint = run_fingerprint(config, digest_rows(bench.data.train), digest_base_model(bench.base))
    run_dir = Path(config.output_dir).resolve() / fingerprint[:12]
    adapter, cost = run_dir / "adapter", run_dir / "cost.json"
    loaded = None
    if not (seal_digest(adapter) and cost.is_file()):
        started = time.process_time()
        loaded = load_model_and_tokenizer(config)
        few = replace(bench.data, held_out=bench.data.held_out.select(range(CURVE_ROWS)))
        train_model(loaded, few, config, run_dir)
        write_adapter(loaded.model, loaded.tokenizer, config, bench.data.leakage_keys, adapter)
        cost.write_text(json.dumps(time.process_time() - started), encoding="utf-8")
    kept = run_dir / f"answers-{comparison_key(config, bench.data, [str(seal_digest(adapter))])[:12]}.json"
    if not kept.is_file():
        answer_and_keep(loaded or load_adapted_model(bench.base, adapter), bench, kept)
    return Trained(adapter, json.loads(cost.read_text(encoding="utf-8")), *read_answers(kept))


def answer_and_keep(loaded: LoadedModel, bench: Bench, path: Path) -> None:
    """Let a model answer the held-out rows, and write the CPU seconds and the judged answers."""
    started = time.process_time()
    answers = evaluate_model(loaded, bench.data.held_out, bench.config, bench.judge)
    path.parent.mkdir(parents=True, exist_ok=True)
    with complete_file(path) as draft:
        kept = {"seconds": time.process_time() - started, "answers": [asdict(found) for found in answers]}
        draft.write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")


def read_answers(path: Path) -> tuple[float, list[Prediction]]:
    """What ``answer_and_keep`` wrote."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    return kept["seconds"], [Prediction(**found) for found in kept["answers"]]


def base_answers(bench: Bench) -> list[Prediction]:
    """The answers of the base without an adapter, kept as those of adapters are."""
    base = digest_base_model(bench.base)
    kept = Path(bench.config.output_dir) / f"base-{comparison_key(bench.config, bench.data, [base])[:12]}.json"
    if not kept.is_file():
        loaded = load_model_and_tokenizer(bench.config)
        with loaded.model.disable_adapter():
            answer_and_keep(loaded, bench, kept)
    return read_answers(kept)[1]


def fresh_rows(bench: Bench) -> Dataset:
    """Rows that are neither trained on nor judged."""
    path = Path(bench.config.output_dir) / f"{POLICY}_fresh.jsonl"
    if not path.is_file():
        write_sample_rows(path, FRESH_LINES, FRESH_SEED)
    config = replace(bench.config, dataset_path=str(path), val_split=0.95)
    return load_training_data(prepare_data(config, bench.base)).held_out


def decides_right(bench: Bench, adapter: Path, fresh: Dataset) -> list[bool]:
    """Whether the decision of an adapter is the expected one, for each fresh row; kept next to the adapter.

    Answers are generated up to their decision only, so that many rows are affordable.
    """
    kept = adapter.parent / f"fresh-{len(fresh)}.json"
    if not kept.is_file():
        loaded = load_adapted_model(bench.base, adapter)
        encoder = ChatEncoder.of(loaded.tokenizer)
        short = replace(bench.config, eval_max_new_tokens=DECISION_TOKENS)
        starts = encoder.decode_answers(generate(loaded, [prompt_of(row) for row in fresh], short))
        expected = [json.dumps({DECISION: decision})[:-1] for decision in fresh["decision"]]
        right = [start.startswith(wanted) for start, wanted in zip(starts, expected, strict=True)]
        kept.write_text(json.dumps(right), encoding="utf-8")
    found: list[bool] = json.loads(kept.read_text(encoding="utf-8"))
    return found
