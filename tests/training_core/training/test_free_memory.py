"""What a process can have is what is free, not what the machine has."""

from pathlib import Path

import psutil
import pytest
import torch

from training_core.training import free_memory
from training_core.training.free_memory import container_room, memory_to_have_gib

GIB = 2**30


def write(folder: Path, **files: str) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"memory.{name}").write_text(f"{text}\n")


def test_container_of_version_two_leaves_its_limit_less_use(tmp_path: Path) -> None:
    write(tmp_path, max=str(8 * GIB), current=str(5 * GIB), stat=f"anon 1\ninactive_file {2 * GIB}")
    assert container_room(tmp_path) == 5 * GIB


def test_container_of_version_one_leaves_its_limit_less_use(tmp_path: Path) -> None:
    stat = f"inactive_file 7\ntotal_inactive_file {2 * GIB}"
    write(tmp_path / "memory", limit_in_bytes=str(8 * GIB), usage_in_bytes=str(5 * GIB), stat=stat)
    assert container_room(tmp_path) == 5 * GIB


def test_container_without_a_limit_leaves_everything(tmp_path: Path) -> None:
    assert container_room(tmp_path) == float("inf")
    write(tmp_path, max="max", current="1", stat="inactive_file 0")
    assert container_room(tmp_path) == float("inf")


def test_memory_to_have_is_bounded_by_machine_and_container(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = psutil.virtual_memory()
    monkeypatch.setattr(free_memory, "container_room", lambda _: float("inf"))
    assert 0 < memory_to_have_gib() < machine.total / GIB
    monkeypatch.setattr(free_memory, "container_room", lambda _: GIB)
    assert memory_to_have_gib() == pytest.approx(1 + psutil.Process().memory_info().rss / GIB, rel=0.05)


def test_memory_to_have_of_a_gpu_is_free_or_reserved_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 2 * GIB)
    assert memory_to_have_gib() == 7
