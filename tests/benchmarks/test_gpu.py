"""The script for a GPU: it runs here on tiny models, loses no result, and goes on after a failure."""

import importlib.metadata
import math
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from transformers import AutoModelForCausalLM

from benchmarks import gpu
from benchmarks.gpu_steps import STEPS
from benchmarks.gpu_steps.bench import ARCHITECTURES, Bench
from benchmarks.gpu_steps.checks import Record, above, below, near, relative_error
from benchmarks.gpu_steps.speed import block_weights, utilisation
from training_core.code_digest import PROJECT, _file, _imports, _reachable

NEED_A_GPU = {"kernel", "memory", "fp16"}


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_steps_pass_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "gpu.json"
    monkeypatch.setattr("sys.argv", ["benchmarks.gpu", "--tiny", "--seconds", "1000", "--output", str(output)])
    with pytest.raises(SystemExit) as end:
        gpu.main()
    record = Record(output)
    assert {name: step.get("error") for name, step in record.steps.items()} == dict.fromkeys(STEPS)
    tested = {name for name, step in record.steps.items() if any(check["wanted"] for check in step["checks"])}
    assert tested == set(STEPS) - NEED_A_GPU
    assert [check for step in record.steps.values() for check in step["checks"] if not check["passed"]] == []
    assert end.value.code == 0


Worker = Callable[[Record, list[str]], tuple[str, int]]


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> list[Worker]:
    """What the next workers do with the record and their steps: they return their errors and their exit code."""
    waiting: list[Worker] = []

    def start(command: list[str], stderr: Any, **_: Any) -> subprocess.CompletedProcess[bytes]:
        first = next(place for place, word in enumerate(command) if word in STEPS)
        output = command[command.index("benchmarks.gpu_steps.worker") + 1]
        errors, code = waiting.pop(0)(Record(Path(output)), command[first:])
        stderr.write(errors)
        stderr.flush()
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(gpu.subprocess, "run", start)
    return waiting


def complete(record: Record, steps: list[str]) -> tuple[str, int]:
    for step in steps:
        record.begin(step)
        record.add(step, below("error", 0.0, 1.0))
        record.end(step, 1.0)
    return "", 0


def die_in_second(record: Record, steps: list[str]) -> tuple[str, int]:
    complete(record, steps[:1])
    record.begin(steps[1])
    record.add(steps[1], below("error", 0.0, 1.0))
    return "Traceback\nRuntimeError: no kernel\n", 1


def test_failed_step_keeps_its_checks_and_error(workers: list[Worker], tmp_path: Path) -> None:
    workers += [die_in_second, complete]
    record = gpu.run(["env", "dtypes", "flex"], tmp_path / "gpu.json", 60, tiny=True)
    assert [record.passed(step) for step in ("env", "dtypes", "flex")] == [True, False, True]
    assert record.steps["dtypes"]["error"].splitlines() == ["Traceback", "RuntimeError: no kernel", "exit code 1"]
    assert [check["what"] for check in record.steps["dtypes"]["checks"]] == ["error"]


def test_worker_that_cannot_start_is_not_tried_again(workers: list[Worker], tmp_path: Path) -> None:
    workers.append(lambda record, steps: ("ModuleNotFoundError: No module named 'trl'", 1))
    record = gpu.run(["env", "dtypes"], tmp_path / "gpu.json", 60, tiny=True)
    assert all("trl" in record.steps[step]["error"] for step in ("env", "dtypes"))


def test_steps_without_time_left_are_named(workers: list[Worker], tmp_path: Path) -> None:
    record = gpu.run(["env", "dtypes"], tmp_path / "gpu.json", 0, tiny=True)
    assert {step["error"] for step in record.steps.values()} == {"not run: no time was left"}


def test_gpu_script_without_a_gpu_names_the_flag(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["benchmarks.gpu"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "--tiny" in capsys.readouterr().err


def test_bounds_reject_what_is_not_a_number() -> None:
    assert not any(check.passed for check in (below("", math.nan, 1), above("", math.nan, 1), near("", math.nan, 1, 1)))
    assert relative_error(torch.tensor([math.nan]), torch.ones(1)) == math.inf


def test_random_base_has_every_weight_once(tmp_path: Path) -> None:
    for name in ("1.5B", "7B"):  # the head is tied to the embeddings in the first one only
        base = Bench(tmp_path, tiny=True).base(name)
        _, info = AutoModelForCausalLM.from_pretrained(base, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]


@pytest.mark.parametrize(("name", "billions"), [("1.5B", 1.31), ("7B", 6.53)])
def test_gpu_architectures_match_qwen25(name: str, billions: float) -> None:
    """Parameters without embeddings, from the model cards, in billions."""
    assert block_weights(ARCHITECTURES[name]) / 1e9 == pytest.approx(billions, abs=0.01)


def test_utilisation_counts_four_operations_per_weight_and_token() -> None:
    seconds = 4 * block_weights(ARCHITECTURES["7B"]) * 1_000 / 1e12
    assert utilisation(1_000, seconds, ARCHITECTURES["7B"], peak_tflops=2.0) == pytest.approx(0.5)


PROCESSES = ("benchmarks.gpu", "benchmarks.gpu_steps.worker", "benchmarks.gpu_steps.child", "training_core.distributed")


def test_machine_with_the_carried_wheels_has_all_that_the_steps_import() -> None:
    """Its page says what to carry, and what has to be there. An import within a library that it does not declare is not
    seen."""
    page = (PROJECT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    carried = set(re.findall(r"[\w-]+", " ".join(re.findall(r"^names=(.+)$", page, re.MULTILINE)))) - {"names"}
    (there,) = re.findall(r"has to have([^;]+);", page)
    present = with_needs({"torch", "transformers", *re.findall(r"`([a-z-]+)`", there)}) | set(map(canonical, carried))
    entries = [step.function.partition(":")[0] for step in STEPS.values()]
    modules = {module for entry in (*entries, *PROCESSES) for module in _reachable(entry, ())}
    imported = {name.partition(".")[0] for module in modules for name in _imports(_file(module))}
    homes = importlib.metadata.packages_distributions()
    needed = {canonical(homes[name][0]) for name in imported if name in homes} - {"sft-flow"}
    assert {"torch", "llguidance", "psutil"} <= needed
    assert needed.union(*map(needs, carried)) - present == set()


def with_needs(names: set[str]) -> set[str]:
    """Distributions, and all that they require."""
    found: set[str] = set()
    left = set(map(canonical, names))
    while left:
        found |= left
        left = set().union(*map(needs, left)) - found
    return found


def needs(name: str) -> set[str]:
    """What a distribution requires here without extras; nothing where it is not installed."""
    try:
        required = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return set()
    marked = [Requirement(line) for line in required]
    return {canonical(one.name) for one in marked if one.marker is None or one.marker.evaluate({"extra": ""})}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
