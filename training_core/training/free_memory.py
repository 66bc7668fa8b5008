"""The memory that this process can have: its own, and what is free of a GPU, of the machine and of its container."""

from pathlib import Path

import psutil
import torch

_CGROUP = Path("/sys/fs/cgroup")
# Limit, use, and the reclaimable part of that use, in the second and in the first version of control groups.
_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def memory_to_have_gib() -> float:
    """GiB of the GPU, or of RAM without one, that this process has or can still get; other processes keep theirs."""
    if torch.cuda.is_available():
        return (torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()) / 2**30
    free = min(psutil.virtual_memory().available, container_room(_CGROUP))
    return (free + psutil.Process().memory_info().rss) / 2**30


def container_room(cgroup: Path) -> float:
    """Bytes that are left below the memory limit of a control group; infinite without one."""
    return min((_room(cgroup, *files) for files in _FILES if (cgroup / files[0]).is_file()), default=float("inf"))


def _room(cgroup: Path, limit: str, used: str, stat: str, reclaimable: str) -> float:
    most = (cgroup / limit).read_text().strip()
    if most == "max":
        return float("inf")
    counts = dict(line.split() for line in (cgroup / stat).read_text().splitlines())
    return int(most) - int((cgroup / used).read_text()) + int(counts.get(reclaimable, 0))
