"""A report on a few rows, for tests of its tables and its page."""

from training_core.dataset.report import Account, DataReport, DecisionCount, Finding, Lengths
from training_core.rows.strict_json import Problem

ROWS = "/some/where/rows.jsonl"
ACCOUNT = Account(ROWS, "native", 15, trained=5, held_out=4, duplicates=3, rejected=2, overlong=1)
LENGTHS = Lengths(2048, {"50": 900, "90": 980, "99": 3000, "100": 3000}, [800, 1000, 2500, 3001], [9, 0, 1])
PROBLEMS = [
    Problem(ROWS, 3, "output.reason", "expected a non-empty string, got ''", "write a non-empty string"),
    Problem(ROWS, 8, "output.reason", "expected a non-empty string, got 5", "write a non-empty string"),
]


def report(**changes: object) -> DataReport:
    values: dict[str, object] = {
        "accounts": [ACCOUNT],
        "decisions": [DecisionCount("Eligible", 4, 1), DecisionCount("Escalate", 1, 3)],
        "lengths": LENGTHS,
        "policies": 2,
        "packing": "5 of 5 rows share 700 tokens",
        "findings": [Finding("exact duplicates", 3, "only the first is used", [f"{ROWS}:1 = {ROWS}:2"])],
        "failures": [],
        "problems": PROBLEMS,
        "case_fields": ["issue_type", "case_id"],
    }
    return DataReport(**(values | changes))  # type: ignore[arg-type]
