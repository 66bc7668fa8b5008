"""What was injected and what came of it: one row for each kind of fault."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Trial:
    """Faults injected into one run; how many of them it survived, and what it then lacked or held twice."""

    injected: int
    survived: int
    lost: int
    duplicated: int
    problem: str = ""


def table(results: dict[str, dict[str, Any]], names: dict[str, str]) -> str:
    """One row for each part that was run, as Markdown; ``names`` are what each injects."""
    lines = [
        "| fault | times injected | survived | lost | duplicated | measured on |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for part in (part for part in names if part in results):
        trials, columns = results[part]["trials"], ("injected", "survived", "lost", "duplicated")
        sums = [sum(trial[column] for trial in trials) for column in columns]
        lines.append(f"| {names[part]} | {' | '.join(map(str, sums))} | {results[part]['date']} |")
    return "\n".join(lines) + "\n"
