"""What a step finds, and the file in which it is kept."""

import json
import math
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from training_core.folders import complete_file


@dataclass(frozen=True)
class Check:
    """Something found, what was wanted (empty: any value, the figure is only reported), and whether that holds."""

    what: str
    found: str
    wanted: str = ""
    passed: bool = True


def figure(what: str, found: Any) -> Check:
    """A value that is reported and cannot fail."""
    return Check(what, _text(found))


def holds(what: str, found: Any, wanted: Any) -> Check:
    """Passes when both are equal."""
    return Check(what, _text(found), _text(wanted), found == wanted)


def below(what: str, found: float, bound: float) -> Check:
    """Passes under the bound; NaN does not."""
    return Check(what, _text(found), f"< {_text(bound)}", found < bound)


def above(what: str, found: float, bound: float) -> Check:
    """Passes over the bound; NaN does not."""
    return Check(what, _text(found), f"> {_text(bound)}", found > bound)


def near(what: str, found: float, expected: float, share: float) -> Check:
    """Passes within a share of what was expected."""
    wanted = f"{_text(expected)} ± {share:.0%}"
    return Check(what, _text(found), wanted, math.isfinite(found) and abs(found - expected) <= share * expected)


def relative_error(found: Tensor, exact: Tensor) -> float:
    """‖found - exact‖ / ‖exact‖, in fp32; infinite where it is not a number."""
    error = float((found.float() - exact.float()).norm() / exact.float().norm())
    return math.inf if math.isnan(error) else error


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return str(value)


class Record:
    """The results as a JSON file, written anew after every check, so that nothing found is ever lost.

    `steps[name]` has `checks`; when the step has ended also `seconds`, and where it failed `error`, the last lines.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = {"about": {}, "steps": {}}
        if path.is_file():
            self.content = json.loads(path.read_text(encoding="utf-8"))

    @property
    def steps(self) -> dict[str, Any]:
        return self.content["steps"]

    def begin(self, step: str) -> None:
        self.content["about"] = {"date": f"{datetime.now(UTC):%Y-%m-%d}"}
        self.steps[step] = {"checks": []}
        self._write()

    def add(self, step: str, check: Check) -> None:
        self.steps[step]["checks"].append(asdict(check))
        self._write()

    def end(self, step: str, seconds: float, error: str = "") -> None:
        self.steps.setdefault(step, {"checks": []}).update(seconds=seconds, **({"error": error} if error else {}))
        self._write()

    def ended(self, step: str) -> bool:
        return "seconds" in self.steps.get(step, {})

    def passed(self, step: str) -> bool:
        found = self.steps.get(step, {})
        return self.ended(step) and "error" not in found and all(check["passed"] for check in found["checks"])

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with complete_file(self.path) as draft:
            draft.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
