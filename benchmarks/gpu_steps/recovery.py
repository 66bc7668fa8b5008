"""A training that is killed ends as one that is not, and a saved adapter answers as the model that was trained."""

import hashlib
import json
import signal
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from benchmarks.gpu_steps.bench import Bench, settings, training_data
from benchmarks.gpu_steps.checks import Check, figure, holds
from benchmarks.gpu_steps.child import answers_and_logits, in_child, train
from training_core.config import RunConfig
from training_core.model_setup import load_model_and_tokenizer
from training_core.trainer import train_model
from training_core.training.adapter import write_adapter

FEW_LAYERS = "1.5B, 4 layers"
STEPS, KILLED_IN = 6, 4


def resume(bench: Bench) -> Iterator[Check]:
    """Six steps, six again, and six of which a process was killed in the fourth: the same adapters, bit by bit."""
    vocabulary = bench.architecture(FEW_LAYERS)["vocab_size"]
    config, rows = _training(bench, FEW_LAYERS), bench.rows(200, 4, 8)
    whole, again, split = (bench.run_dir(name) for name in ("whole", "again", "split"))
    train(config, rows, vocabulary, whole)
    yield figure("adapter", digest(whole))
    train(config, rows, vocabulary, again)
    yield holds("a second training gives the same adapter", digest(again), digest(whole))
    code = in_child("train", _saved(config, split), json.dumps(asdict(rows)), vocabulary, split, KILLED_IN)
    yield holds("exit code of the killed training", code, -signal.SIGKILL)
    summary = train(config, rows, vocabulary, split)
    yield holds("resumed from step", summary.resumed_from_step, KILLED_IN - 1)
    yield holds("the resumed training gives the same adapter", digest(split), digest(whole))


def _training(bench: Bench, base: str) -> RunConfig:
    """Several packs a step, and dropout, so that the state of the random numbers counts too."""
    return settings(
        bench.base(base),
        max_steps=STEPS,
        lora_dropout=0.05,
        learning_rate=1e-3,
        max_seq_length=512,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        max_eval_rows=8,
        eval_max_new_tokens=32,
    )


def _saved(config: RunConfig, run_dir: Path) -> Path:
    run_dir.mkdir(parents=True)
    return config.save(run_dir)


def digest(run_dir: Path) -> str:
    """The start of the SHA-256 of the adapter's weights."""
    return hashlib.sha256((run_dir / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()[:16]


def parity(bench: Bench) -> Iterator[Check]:
    """Greedy answers to 32 prompts by the model that was just trained and by its adapter in another process."""
    config, run_dir = _training(bench, "1.5B"), bench.run_dir("parity")
    rows = bench.rows(200, 4, 8).make(bench.architecture("1.5B")["vocab_size"])
    loaded, data = load_model_and_tokenizer(config), training_data(rows, rows)
    train_model(loaded, data, config, run_dir)
    prompts = [row[:-40] for row in rows["input_ids"]]
    found = answers_and_logits(loaded, prompts, config)
    write_adapter(loaded.model, loaded.tokenizer, config, data.leakage_keys, run_dir / "adapter")
    asked, answered = run_dir / "prompts.json", run_dir / "answers.json"
    asked.write_text(json.dumps(prompts), encoding="utf-8")
    code = in_child("answer", config.save(run_dir), run_dir / "adapter", asked, answered)
    yield holds("exit code of the process that answers", code, 0)
    reloaded = json.loads(answered.read_text(encoding="utf-8"))
    yield figure("different tokens in the answers", len({token for answer in found["answers"] for token in answer}))
    same = sum(mine == theirs for mine, theirs in zip(found["answers"], reloaded["answers"], strict=True))
    yield holds("equal answers", same, len(prompts))
    yield holds("equal logits after every prompt, to the bit", reloaded["logits"] == found["logits"], True)
