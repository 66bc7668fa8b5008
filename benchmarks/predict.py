"""Answers to files of cases: `python -m benchmarks.predict` measures speed beside transformers, SIGKILLs and memory.

`--only speed`, `--only kills` or `--only memory` measures one of them again; `--render` writes the table of
docs/using.md from the last results.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from benchmarks.rows import SMALL_QWEN3
from flows.doc_sections import DOCS, ROOT, write_section
from samples.cases import generate_rows
from training_core.config import RunConfig
from training_core.model_setup import load_model_and_tokenizer, load_tokenizer
from training_core.prediction.answering import Answerer
from training_core.prediction.cases import find_cases
from training_core.prediction.job import Job, write_answers
from training_core.prompts.messages import format_as_chat
from training_core.training.adapter import write_adapter

RESULTS = Path(__file__).parent / "results" / "predict.json"
PAGE, SECTION = DOCS / "using.md", "predict"
TINY_BASE = ROOT / "samples" / "tiny_qwen"

POLICY_TOKENS, CASES_PER_POLICY, POLICIES, ANSWER_TOKENS, BATCH_SIZE, REPEATS = 800, 32, 1, 40, 32, 3
KILLS = 20
SHORT_CASES = (10_000, 100_000)

Row = dict[str, Any]


def main() -> None:
    measured: dict[str, Callable[[Path], Any]] = {"speed": speed, "kills": kills, "memory": memory}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predict")
    parser.add_argument("--only", choices=measured)
    parser.add_argument("--render", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name, measure in measured.items():
        if not given.render and given.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                found = measure(Path(folder)) | {"date": f"{date.today()}"}
            sys.stdout.write(f"{name}: {found}\n")
            results = (load() if RESULTS.is_file() else {}) | {name: found}
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_section(PAGE, SECTION, section(load()))


def load() -> dict[str, Any]:
    """What was measured last."""
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def section(results: dict[str, Any]) -> str:
    """A row for each figure that was measured."""
    measured = [name for name in _ROWS if name in results]
    rows = [row | {"on": results[name]["date"]} for name in measured for row in _ROWS[name](results[name])]
    lines = [f"| {row['what']} | {row['found']} | {row['on']} |" for row in rows]
    return "\n".join(["| what | measured | on |", "|---|---|---|", *lines, ""])


def _speed_rows(found: dict[str, Any]) -> list[Row]:
    differing = f"{found['differing']} of {found['answers']}"
    return [
        {"what": "cases per CPU second, over transformers' batched `generate`", "found": f"{found['gain']:.2f}x"},
        {"what": "answers that differ from those of transformers", "found": differing},
    ]


def _kill_rows(found: dict[str, Any]) -> list[Row]:
    what = f"outputs that differ after {found['kills']} SIGKILLs at random times"
    return [{"what": what, "found": f"{found['differing']} of {found['outputs']}"}]


def _memory_rows(found: dict[str, Any]) -> list[Row]:
    return [
        {"what": f"peak memory with {int(lines):,} short cases", "found": f"{peak:,} MiB"}
        for lines, peak in found["peak_mib"].items()
    ]


_ROWS = {"speed": _speed_rows, "kills": _kill_rows, "memory": _memory_rows}


def version(base: Path, folder: Path, **settings: Any) -> Answerer:
    """A fresh adapter on a base, as one that is registered."""
    config = RunConfig(model_name=str(base), constrain="none", **settings)
    made = load_model_and_tokenizer(config)
    write_adapter(made.model, made.tokenizer, config, np.empty(0, np.uint64), folder / "adapter")
    return Answerer(base, folder / "adapter", config)


def job_of(answerer: Answerer, rows: Path, output: Path) -> Job:
    return Job(find_cases(str(rows)), answerer, "models:/benchmark/1", "", "", f"{output}.parts", str(output))


def write_rows(path: Path, rows: Iterator[Row]) -> Path:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({name: row[name] for name in ("instruction", "input")}) + "\n" for row in rows)
    return path


def speed(folder: Path) -> dict[str, Any]:
    """A whole job, from the file of cases to that of answers, and transformers with the same prompts, in turn.

    Median CPU seconds of both, their ratio, and how many answers differ.
    """
    rows, answerer = write_rows(folder / "cases.jsonl", cases_of_long_policies()), random_version(folder)
    seconds: dict[str, list[float]] = {"ours": [], "transformers": []}
    for _ in range(REPEATS):
        answers = {}
        for name, answer in (("ours", ours), ("transformers", theirs)):
            started = time.process_time()
            answers[name] = answer(answerer, rows, folder / "answers.jsonl")
            seconds[name].append(time.process_time() - started)
    costs = {name: median(values) for name, values in seconds.items()}
    differing = sum(a != b for a, b in zip(*answers.values(), strict=True))
    return {
        "seconds": seconds,
        "gain": costs["transformers"] / costs["ours"],
        "answers": len(answers["ours"]),
        "differing": differing,
    }


def random_version(folder: Path) -> Answerer:
    """A small base in four bits, with random weights and the tiny base's tokenizer; loaded."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(TINY_BASE)
    config = AutoConfig.for_model(**SMALL_QWEN3 | {"vocab_size": len(tokenizer)})
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    limits = {"eval_max_new_tokens": ANSWER_TOKENS, "eval_batch_size": BATCH_SIZE, "max_seq_length": 4096}
    answerer = version(folder / "base", folder, **limits)
    assert answerer.loaded
    return answerer


def cases_of_long_policies() -> Iterator[Row]:
    tokenizer = load_tokenizer(TINY_BASE)
    rows = list(generate_rows(POLICIES * CASES_PER_POLICY, seed=3))
    words = tokenizer(rows[0]["input"]["policy_document"] * 3, add_special_tokens=False)["input_ids"]
    for number, row in enumerate(rows):
        policy = f"Policy {number % POLICIES}\n" + tokenizer.decode(words[:POLICY_TOKENS])
        yield row | {"input": row["input"] | {"policy_document": policy}}


def ours(answerer: Answerer, rows: Path, output: Path) -> list[str]:
    write_answers(job_of(answerer, rows, output), lambda _: None)
    return [json.loads(line)["answer"] for line in output.read_bytes().splitlines()]


@torch.inference_mode()
def theirs(answerer: Answerer, rows: Path, _: Path) -> list[str]:
    """Batches of prompts of similar length, padded on the left."""
    tokenizer, model = answerer.loaded.tokenizer, answerer.loaded.model
    tokenizer.padding_side = "left"
    chats = [format_as_chat(json.loads(line)) for line in rows.read_bytes().splitlines()]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=ANSWER_TOKENS,
        eos_token_id=answerer.encoder.end_of_turn,
        pad_token_id=answerer.encoder.end_of_turn,
    )
    order, answers = sorted(range(len(texts)), key=lambda place: len(texts[place])), dict[int, str]()
    for start in range(0, len(order), BATCH_SIZE):
        places = order[start : start + BATCH_SIZE]
        inputs = tokenizer(
            [texts[place] for place in places], return_tensors="pt", padding=True, add_special_tokens=False
        )
        output = model.generate(**inputs, generation_config=greedy)[:, inputs["input_ids"].shape[1] :]
        answers |= {
            place: answerer.encoder.decode_answer(ids) for place, ids in zip(places, output.tolist(), strict=True)
        }
    return [answers[place] for place in range(len(texts))]


def kills(folder: Path) -> dict[str, Any]:
    """Kill processes at random times until ``KILLS`` were killed; resume each output to its end, and compare it."""
    rows = write_rows(folder / "cases.jsonl", generate_rows(96, seed=5))
    answerer = version(TINY_BASE, folder, eval_max_new_tokens=4, eval_batch_size=1, max_seq_length=4096)
    assert answerer.loaded  # processes are forked with it
    started = time.monotonic()
    unbroken = ours(answerer, rows, folder / "unbroken.jsonl")
    took, outputs, killed, differing = time.monotonic() - started, 0, 0, 0
    chance = random.Random(0)
    while killed < KILLS:
        output, outputs = folder / f"{outputs}.jsonl", outputs + 1
        while killed_once(answerer, rows, output, chance.uniform(0, took / 4)):
            killed += 1
        differing += output.read_bytes() != (folder / "unbroken.jsonl").read_bytes()
    return {"kills": killed, "differing": differing, "outputs": outputs, "cases": len(unbroken)}


def killed_once(answerer: Answerer, rows: Path, output: Path, after: float) -> int:
    """Answer in a process of its own; 1 when it was killed, 0 when it had ended before."""
    process = multiprocessing.get_context("fork").Process(target=ours, args=(answerer, rows, output))
    process.start()
    process.join(after)
    if process.exitcode is None:
        os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    return int(process.exitcode == -signal.SIGKILL)


def memory(folder: Path) -> dict[str, Any]:
    """The most memory that a process of its own held, for few and for many short cases."""
    answerer = version(TINY_BASE, folder, eval_max_new_tokens=2, eval_batch_size=64)
    peaks, seconds = {}, {}
    for lines in SHORT_CASES:
        rows = write_rows(folder / "cases.jsonl", short_cases(lines))
        started = time.monotonic()
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peaks[str(lines)] = pool.apply(peak_of, (str(answerer.adapter), rows, folder / "answers.jsonl"))
        seconds[str(lines)] = round(time.monotonic() - started)
    return {"peak_mib": peaks, "seconds": seconds}


def short_cases(lines: int) -> Iterator[Row]:
    for number in range(lines):
        case = {"days": number % 60, "case_id": f"C-{number}", "policy_document": f"Rule {number % 7}: 30 days."}
        yield {"instruction": "Decide.", "input": case}


def peak_of(adapter: str, rows: Path, output: Path) -> int:
    torch.set_num_threads(1)
    answerer = Answerer(TINY_BASE, Path(adapter), RunConfig.load(Path(adapter)))
    counts = write_answers(job_of(answerer, rows, output), lambda _: None)
    assert counts.bad == 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
