"""What is published about the gate is what was simulated, and the simulation is what it says."""

import json

import numpy as np
import pytest

from benchmarks.gate import (
    FAVOURABLE,
    RESULTS,
    Cell,
    comparison,
    correlation,
    measure,
    weekly,
)


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    return [Cell(**cell) for cell in json.loads(RESULTS.read_text())["cells"]]


def test_gate_promoted_few_equal_and_few_harmful_adapters(cells: list[Cell]) -> None:
    equal = [cell for cell in cells if cell.gain == 0]
    harmful = [cell for cell in cells if cell.kind == "harm"]
    assert len(equal) >= 6 and len(harmful) >= 5 and min(cell.gates for cell in cells) >= 2_000
    # 5% with the error of 2,000 draws (two standard deviations: 1 point)
    assert all(cell.promoted <= 0.06 for cell in (*equal, *harmful))
    assert all(cell.old_rule > 0.4 for cell in equal)


def test_gate_simulation_has_the_gain_and_rise_asked_for() -> None:
    evidence = comparison(np.random.default_rng(0), 200_000, 0.05, rise=0.03)
    candidate, champion = evidence.right("candidate"), evidence.right("champion")
    granted = [
        np.mean((evidence.models[name].decision == FAVOURABLE) & (evidence.expected != FAVOURABLE))
        for name in ("candidate", "champion")
    ]
    assert candidate.mean() - champion.mean() == pytest.approx(0.05, abs=0.003)
    assert np.mean(candidate != champion) == pytest.approx(0.15, abs=0.003)
    assert granted[0] - granted[1] == pytest.approx(0.03, abs=0.003)


def test_gate_simulation_is_repeatable_and_counts_every_outcome() -> None:
    once, again = (measure("power", 250, 20, gain=0.05) for _ in range(2))
    assert once == again
    assert sum(once.outcomes.values()) == 20
    assert 0 < correlation() < 1
    assert weekly("more right", "same", 1).promotions >= 1
