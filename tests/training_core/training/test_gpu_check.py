"""A GPU that torch cannot use is a problem with a fix, never a silent training on the CPU."""

from pathlib import Path

import pytest
import torch

from training_core.training import gpu_check
from training_core.training.gpu_check import VISIBLE, gpu_problems


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a GPU; its driver's files would be in this folder."""
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(gpu_check, "_DRIVER_VERSION", tmp_path / "version")
    monkeypatch.setattr(gpu_check, "_DEVICES", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_machine_without_a_gpu_trains_on_its_cpu() -> None:
    assert gpu_problems(gpu_expected=False) == []


def test_gpu_worker_without_a_gpu_is_refused() -> None:
    (problem,) = gpu_problems(gpu_expected=True)
    assert "found no NVIDIA driver" in problem and "docker run --gpus all" in problem


@pytest.mark.parametrize("trace", ["version", "nvidia0", "nvidia-smi"])
def test_gpu_with_an_old_driver_is_refused_with_the_fix(machine: Path, trace: str) -> None:
    (machine / trace).write_text("NVRM version: 535.104.05\nGCC version: 12\n")
    (machine / trace).chmod(0o755)
    (problem,) = gpu_problems(gpu_expected=False)
    assert ("535.104.05" if trace == "version" else trace) in problem
    assert "needs a driver for CUDA 13.0, so update the driver" in problem


def test_gpu_with_a_torch_without_cuda_is_refused(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "nvidia0").touch()
    monkeypatch.setattr(torch.version, "cuda", None)
    (problem,) = gpu_problems(gpu_expected=False)
    assert "is a build without CUDA" in problem


@pytest.mark.parametrize("chosen", ["", "-1"])
def test_cpu_by_choice_is_no_problem(machine: Path, monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    (machine / "nvidia0").touch()
    monkeypatch.setenv(VISIBLE, chosen)
    assert gpu_problems(gpu_expected=True) == []


def test_usable_gpu_is_no_problem(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "nvidia0").touch()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu_problems(gpu_expected=True) == []
