"""Loads a registered model in a process of its own and compares it with the model in memory, token for token."""

import json
import sys
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

from tasks.startup import paused_garbage_collection
from training_core.evaluation.generation import logit_gap

# What rounding may do to a near tie; answers of another model are ahead by 1.5 in the median (tiny base, no adapter).
MAX_LOGIT_GAP = 0.5


def compare(model_uri: str, sample_file: Path) -> str:
    """In what the registered model agrees with the probe of an evaluation; raises ``ValueError`` where it does not.

    On a machine like the one that wrote the probe the answers must have the same tokens. Another machine rounds
    otherwise: there every token of the probe's answers must be the likeliest, or less than ``MAX_LOGIT_GAP`` logits
    behind it.
    """
    probe = json.loads(sample_file.read_text(encoding="utf-8"))
    rows = pd.DataFrame([as_input(json.loads(record)) for record in probe["records"]])
    with paused_garbage_collection():
        served = mlflow.pyfunc.load_model(model_uri, model_config={"max_new_tokens": probe["max_new_tokens"]})
    adapter = served.unwrap_python_model()
    if adapter.loaded.precision.reason == probe["precision"]:
        answers = [list(tokens) for tokens in served.predict(rows)["token_ids"]]
        differing = [i for i, pair in enumerate(zip(answers, probe["answers"], strict=True)) if pair[0] != pair[1]]
        if differing:
            raise ValueError(f"{len(differing)} of {len(rows)} answers differ: {differing}")
        return "the same tokens"
    prompts = [adapter.prompt(row) for row in rows.to_dict("records")]
    gaps = [logit_gap(adapter.loaded, *asked) for asked in zip(prompts, probe["answers"], strict=True)]
    if not all(found < MAX_LOGIT_GAP for found in gaps):  # nor when one is no number
        raise ValueError(f"answers computed as {probe['precision']} are {max(gaps):.2f} logits behind others here")
    return f"the same answers, at most {max(gaps):.2f} logits behind others ({adapter.loaded.precision.reason})"


def as_input(record: dict[str, Any]) -> dict[str, str]:
    """A held-out row as the registered model is asked."""
    if "messages" in record:
        return {"messages": json.dumps(record["messages"])}
    return {"instruction": record["instruction"], "input": json.dumps(record["input"])}


def main() -> int:
    """Say in what the model agrees, or does not."""
    try:
        sys.stdout.write(f"{compare(sys.argv[1], Path(sys.argv[2]))}\n")
    except ValueError as error:
        sys.stdout.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
