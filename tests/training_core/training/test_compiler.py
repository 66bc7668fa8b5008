"""A machine that cannot compile kernels is told what to install, before a training starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training_core.training import compiler
from training_core.training.compiler import compiler_problems

# In a process of its own: torch remembers which compiler it has found. On a CPU it compiles C++ instead of kernels.
SHOW = "from training_core.training.compiler import compiler_problems; print(compiler_problems('cpu'))"


def problems_with(compiler: str, cache: Path) -> str:
    environment = os.environ | {"CXX": compiler, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    return subprocess.run(
        [sys.executable, "-c", SHOW], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.slow
def test_missing_compiler_is_named_with_the_fix(tmp_path: Path) -> None:
    problem = problems_with("no-such-compiler", tmp_path)
    assert "no-such-compiler" in problem
    assert "apt-get install gcc libc6-dev python3-dev" in problem


@pytest.mark.slow
def test_machine_that_compiles_has_no_problem(tmp_path: Path) -> None:
    assert problems_with("g++", tmp_path) == "[]"


def test_compiler_that_crashes_ends_only_its_own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel needs of the GPU's memory is free again when that process has ended."""
    monkeypatch.setattr(compiler, "_KERNEL", "import os; os.abort()")
    (problem,) = compiler_problems("cpu")
    assert "that fails: exit code -6; install a C compiler" in problem


def test_machine_without_a_gpu_needs_no_compiler() -> None:
    assert torch.cuda.is_available() or compiler_problems() == []
