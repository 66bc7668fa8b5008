"""What a step lets another process do: train, maybe until it kills itself, or answer with a saved adapter."""

import argparse
import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.gpu_steps.bench import training_data
from benchmarks.rows import RowSet
from training_core.child_processes import child_process
from training_core.config import RunConfig
from training_core.evaluation.generation import generate
from training_core.model_setup import LoadedModel, load_adapted_model, load_model_and_tokenizer
from training_core.trainer import TrainingSummary, train_model


def in_child(*arguments: object) -> int:
    """Run this module in a new process, which ends with this one, and return its exit code."""
    with child_process(["benchmarks.gpu_steps.child", *map(str, arguments)]) as process:
        return process.wait()


def train(config: RunConfig, rows: RowSet, vocabulary: int, run_dir: Path) -> TrainingSummary:
    """Train as the product does, and write the adapter to `run_dir/adapter`."""
    loaded, data = load_model_and_tokenizer(config), rows.make(vocabulary)
    summary = train_model(loaded, training_data(data, data), config, run_dir)
    if PartialState().is_main_process:
        loaded.model.save_pretrained(run_dir / "adapter")
    return summary


def answers_and_logits(loaded: LoadedModel, prompts: list[list[int]], config: RunConfig) -> dict[str, Any]:
    """Greedy answers, and the SHA-256 of the logits that each prompt ends with: near ties hide in equal answers."""
    answers, digest = generate(loaded, prompts, config), hashlib.sha256()
    with torch.no_grad():
        for prompt in prompts:
            logits = loaded.model(torch.tensor([prompt], device=loaded.model.device)).logits[0, -1]
            digest.update(logits.float().cpu().numpy().tobytes())
    return {"answers": answers, "logits": digest.hexdigest()}


def die_in_step(last: int) -> None:
    """Kill this process in the optimiser step of this number, with nothing cleaned up."""
    steps = 0

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_post_hook(count)


def main() -> None:
    """Train or answer as the command line says; several that torch's launcher starts train together.

    `train SETTINGS ROWS VOCABULARY RUN_DIR STEP` dies in that step (0: never); or `answer SETTINGS ADAPTER IN OUT`.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("train", "answer"))
    parser.add_argument("arguments", nargs="+")
    what, (first, second, third, fourth, *rest) = vars(parser.parse_args()).values()
    config = RunConfig.load(first)
    PartialState(cpu=not torch.cuda.is_available())  # before a model is loaded: it chooses the device
    if what == "train":
        die_in_step(int(rest[0]))
        train(config, RowSet(**json.loads(second)), int(third), Path(fourth))
    else:
        loaded = load_adapted_model(Path(config.model_name), Path(second))
        found = answers_and_logits(loaded, json.loads(Path(third).read_text(encoding="utf-8")), config)
        Path(fourth).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
