"""The table in docs/performance.md of what was seen on a GPU: `python -m benchmarks.gpu_page` writes it."""

import json
from typing import Any

from benchmarks.gpu import RESULTS
from benchmarks.gpu_steps import STEPS
from flows.doc_sections import DOCS, write_section

PAGE, SECTION = DOCS / "performance.md", "gpu"
_ENVIRONMENT = ("card", "driver", "versions")


def load() -> dict[str, Any]:
    """What `benchmarks.gpu` wrote last on a machine with a GPU."""
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def section(results: dict[str, Any]) -> str:
    """A row for each check, and a row for each step that was not run."""
    steps = results["steps"]
    lines = ["| step | check | found | wanted | |", "|---|---|---|---|---|"]
    for name in STEPS:
        lines += _rows(name, steps[name]) if name in steps else [f"| {name} | not run | | | |"]
    about = {check["what"]: check["found"] for check in steps["env"]["checks"]}
    machine = "; ".join(about[name] for name in _ENVIRONMENT)
    return "\n".join([*lines, "", f"{results['about']['date']}, {machine}.", ""])


def _rows(name: str, step: dict[str, Any]) -> list[str]:
    rows = []
    if "error" in step:
        rows.append((name, step["error"].splitlines()[-1], "", "", "FAILED"))
    for check in step["checks"]:
        if check["what"] not in _ENVIRONMENT:
            mark = ("passed" if check["passed"] else "FAILED") if check["wanted"] else ""
            rows.append((name, check["what"], check["found"], check["wanted"], mark))
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]


if __name__ == "__main__":
    write_section(PAGE, SECTION, section(load()))
