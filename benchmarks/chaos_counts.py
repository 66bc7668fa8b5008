"""What MLflow's store holds of a training, and whether something is missing or there twice."""

import contextlib
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from benchmarks.chaos_table import Trial

STEPS: Final = 5  # of a training with dummy weights

# What MLflow holds of one training, apart from what was deleted; "deleted versions" are those that once had a number.
ONE_OF_EACH: Mapping[str, int] = {
    "runs": 1,
    "runs that never end": 0,
    "logged models": 1,
    "logged models that are not ready": 0,
    "versions": 1,
    "deleted versions": 0,
    "points": STEPS,
    "points twice": 0,
    "decisions": 1,
    "ledgers": 1,
}
_OWN_RUNS = "run_uuid IN (SELECT run_uuid FROM tags WHERE key = 'sft_flow.fingerprint' AND value = :fingerprint)"
_OWN_MODELS = (
    "model_id IN (SELECT model_id FROM logged_model_tags WHERE tag_key = 'sft_flow.fingerprint' AND tag_value ="
    " :fingerprint) AND lifecycle_stage = 'active'"
)
_LEDGERS = "run_uuid IN (SELECT run_uuid FROM tags WHERE key = 'sft_flow.ledger_of' AND value = :name)"
_COUNTS = {
    "runs": f"FROM runs WHERE {_OWN_RUNS} AND lifecycle_stage = 'active'",
    "runs that never end": f"FROM runs WHERE {_OWN_RUNS} AND status NOT IN ('FINISHED', 'KILLED')",
    "logged models": f"FROM logged_models WHERE {_OWN_MODELS}",
    "logged models that are not ready": f"FROM logged_models WHERE {_OWN_MODELS} AND status != 2",
    "versions": "FROM model_versions WHERE name = :name AND current_stage != 'Deleted_Internal'",
    "deleted versions": "FROM model_versions WHERE name = :name AND current_stage = 'Deleted_Internal'",
    "points": f"FROM (SELECT DISTINCT step FROM metrics WHERE key = 'loss' AND {_OWN_RUNS})",
    "points twice": f"- count(DISTINCT step) FROM metrics WHERE key = 'loss' AND {_OWN_RUNS}",
    "decisions": f"FROM params WHERE key LIKE 'decision.%' AND {_LEDGERS}",
    "ledgers": f"FROM runs WHERE {_LEDGERS} AND lifecycle_stage = 'active'",
}


def held(database: Path, fingerprint: str, name: str) -> dict[str, int]:
    """What a store holds of a training and of its registered model; ``ONE_OF_EACH`` when nothing is lost or twice."""
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as store:
        values = {"fingerprint": fingerprint, "name": name}
        return {
            what: store.execute(f"SELECT count(*) {query}", values).fetchone()[0] for what, query in _COUNTS.items()
        }


def judge(found: Mapping[str, int], wanted: Mapping[str, int], injected: int, problem: str = "") -> Trial:
    """Compare what MLflow holds with what it holds of a run that nothing disturbed."""
    wrong = {what: (found[what], count) for what, count in wanted.items() if found[what] != count}
    lost = sum(max(0, count - got) for got, count in wrong.values())
    twice = sum(max(0, got - count) for got, count in wrong.values())
    problem = f"{problem} {wrong or ''}".strip()
    return Trial(injected, 0 if problem else injected, lost, twice, problem)
