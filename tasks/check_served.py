"""Loads a registered model in a process of its own and compares it, token for token, with the model in memory."""

import json
import sys
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

from training_core.startup import garbage_left_alone


def compare(model_uri: str, probe_file: Path) -> str | None:
    """What is wrong with the registered model's answers to the probe of an evaluation; ``None`` when all is well."""
    probe = json.loads(probe_file.read_text(encoding="utf-8"))
    records = [json.loads(record) for record in probe["records"]]
    rows = pd.DataFrame([as_input(record) for record in records])
    with garbage_left_alone():
        served = mlflow.pyfunc.load_model(model_uri, model_config={"max_new_tokens": probe["max_new_tokens"]})
    answers = [list(tokens) for tokens in served.predict(rows)["token_ids"]]
    differing = [i for i, (got, expected) in enumerate(zip(answers, probe["answers"], strict=True)) if got != expected]
    return f"{len(differing)} of {len(records)} answers differ: {differing}" if differing else None


def as_input(record: dict[str, Any]) -> dict[str, str]:
    """A held-out row as the registered model is asked."""
    if "messages" in record:
        return {"messages": json.dumps(record["messages"])}
    return {"instruction": record["instruction"], "input": json.dumps(record["input"])}


if __name__ == "__main__":
    problem = compare(sys.argv[1], Path(sys.argv[2]))
    sys.stdout.write(f"{problem or 'the same tokens'}\n")
    sys.exit(1 if problem else 0)
