"""What was injected and what came of it: one row for each kind of fault."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "chaos.json"


@dataclass(frozen=True)
class Trial:
    """Faults injected into one run; how many of them it survived, and what it then lacked or held twice."""

    injected: int
    survived: int
    lost: int
    duplicated: int
    problem: str = ""
    what: str = ""  # where, in which stage, or of which kind


def table(results: dict[str, dict[str, Any]], names: dict[str, str]) -> str:
    """One row for each part that was run, as Markdown; ``names`` are what each injects."""
    lines = [
        "| fault | times injected | survived | lost | duplicated | measured on |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for part in (part for part in names if part in results):
        trials, columns = results[part]["trials"], ("injected", "survived", "lost", "duplicated")
        sums = [sum(trial[column] for trial in trials) for column in columns]
        kinds = Counter(kind for trial in trials if trial["injected"] for kind in trial["what"].split(", ") if kind)
        name = names[part] + (f" ({', '.join(f'{kind} {count}' for kind, count in kinds.items())})" if kinds else "")
        lines.append(f"| {name} | {' | '.join(map(str, sums))} | {results[part]['date']} |")
    return "\n".join(lines) + "\n"


def read_results() -> dict[str, dict[str, Any]]:
    """The results of all parts that were run, by name."""
    return dict(json.loads(RESULTS.read_text(encoding="utf-8"))) if RESULTS.exists() else {}


def record(name: str, result: dict[str, Any]) -> None:
    """Replace the result of one part."""
    RESULTS.write_text(json.dumps(read_results() | {name: result}, indent=1) + "\n", encoding="utf-8")
