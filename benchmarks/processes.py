"""Runs a program and sees what it, and the processes it starts, cost from line to line of what it prints."""

import os
import re
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Mark:
    """A printed line, and the seconds and the CPU-seconds of the program's own process when it came."""

    line: str
    wall: float
    cpu: float


@dataclass(frozen=True)
class Watched:
    """What a program took. ``cpu_of_children`` maps the command line of each process it started to CPU-seconds."""

    wall: float
    cpu: float
    cpu_of_children: dict[str, float]
    marks: list[Mark]


def watch(command: Sequence[str], environment: dict[str, str], until: str | None = None) -> Watched:
    """Run a command to its end, or to the first line that matches ``until``, where all of its processes are killed.

    Raises ``RuntimeError`` with the last lines when the command fails or no such line comes.
    """
    started, marks = time.monotonic(), []
    program = psutil.Popen(
        command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    children = _Children(program)
    children.start()
    for line in program.stdout:
        marks.append(Mark(line.rstrip(), time.monotonic() - started, _cpu(program)))
        if until and re.search(until, line):
            own, wall = marks[-1].cpu, marks[-1].wall
            costs = children.stop_and_kill()
            return Watched(wall, own + sum(costs.values()), costs, marks)
    costs = children.stop()
    _, status, used = os.wait4(program.pid, 0)
    if status or until:
        raise RuntimeError("\n".join(mark.line for mark in marks[-20:]))
    return Watched(time.monotonic() - started, used.ru_utime + used.ru_stime, costs, marks)


class _Children(threading.Thread):
    """Looks again and again at the processes that a program has started, for a process that is gone tells nothing."""

    def __init__(self, program: psutil.Popen) -> None:
        super().__init__(daemon=True)
        self.program, self.over = program, threading.Event()
        self.costs: dict[str, float] = {}

    def run(self) -> None:
        while not self.over.wait(POLL_SECONDS):
            self.look()

    def look(self) -> None:
        for child in self.program.children(recursive=True):
            try:
                self.costs[f"{child.pid} {' '.join(child.cmdline())}"] = _cpu(child)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue

    def stop(self) -> dict[str, float]:
        self.over.set()
        self.join()
        return self.costs

    def stop_and_kill(self) -> dict[str, float]:
        self.stop()
        self.look()
        for process in (*self.program.children(recursive=True), self.program):
            process.kill()
        self.program.wait()
        return self.costs


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
