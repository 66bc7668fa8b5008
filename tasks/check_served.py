"""Loads a registered model in a process of its own and compares its answers with the evaluation's, token for token.

The process must run the code that is packaged with the model: MLflow puts that first on the path, and what was imported
before stays. So nothing of ``training_core`` is imported here before the model is loaded.
"""

import json
import sys
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

from tasks.startup import paused_garbage_collection

# What rounding may do to a near tie; answers of another model are ahead by 1.5 in the median (tiny base, no adapter).
MAX_LOGIT_GAP = 0.5


def check_parity(model_uri: str, sample_file: Path) -> str:
    """In what the registered model agrees with the parity sample of an evaluation; raises ``ValueError`` where it does
    not.

    On a machine like the one that wrote the sample the answers must have the same tokens. Another machine rounds
    otherwise: there every token of the sample's answers must be the likeliest, or less than ``MAX_LOGIT_GAP`` logits
    behind it.
    """
    sample = json.loads(sample_file.read_text(encoding="utf-8"))
    rows = pd.DataFrame([as_input(json.loads(record)) for record in sample["records"]])
    with paused_garbage_collection():
        served = mlflow.pyfunc.load_model(model_uri)
    _require_evaluated_settings(served.model_config, sample)
    if served.unwrap_python_model().loaded.precision.reason == sample["precision"]:
        return _same_tokens(served, rows, sample)
    return _near_ties(served.unwrap_python_model(), rows, sample)


def _require_evaluated_settings(registered: Any, sample: dict[str, Any]) -> None:
    expected = {name: sample[name] for name in ("max_new_tokens", "constrain") if name in sample}
    found = {name: registered[name] for name in expected}
    if found != expected:
        raise ValueError(f"expected a model that is served as it was evaluated, with {expected}, got {found}")


def _same_tokens(served: Any, rows: pd.DataFrame, sample: dict[str, Any]) -> str:
    answers = [list(tokens) for tokens in served.predict(rows)["token_ids"]]
    differing = [i for i, pair in enumerate(zip(answers, sample["answers"], strict=True)) if pair[0] != pair[1]]
    if differing:
        raise ValueError(f"{len(differing)} of {len(rows)} answers differ: {differing}")
    return "the same tokens"


def _near_ties(adapter: Any, rows: pd.DataFrame, sample: dict[str, Any]) -> str:
    from training_core.evaluation.generation import logit_gap

    prompts = [adapter.prompt(row) for row in rows.to_dict("records")]
    held = adapter.grammar, sample["max_new_tokens"]
    gaps = [logit_gap(adapter.loaded, *asked, *held) for asked in zip(prompts, sample["answers"], strict=True)]
    if not all(found < MAX_LOGIT_GAP for found in gaps):  # also when one is not a number
        raise ValueError(f"answers computed as {sample['precision']} are {max(gaps):.2f} logits behind others here")
    return f"the same answers, at most {max(gaps):.2f} logits behind others ({adapter.loaded.precision.reason})"


def require_packaged_code() -> None:
    """Raise ``ValueError`` when ``training_core`` is the one of this checkout."""
    code = Path(str(sys.modules["training_core"].__file__)).resolve()
    if code.parents[1] == Path(__file__).resolve().parents[1]:
        raise ValueError(f"expected the model's packaged code, got {code}")


def as_input(record: dict[str, Any]) -> dict[str, str]:
    """A held-out row as the registered model is asked."""
    if "messages" in record:
        return {"messages": json.dumps(record["messages"])}
    return {"instruction": record["instruction"], "input": json.dumps(record["input"])}


def main() -> int:
    """Write in what the model agrees, or does not."""
    try:
        agreement = check_parity(sys.argv[1], Path(sys.argv[2]))
        require_packaged_code()
    except (ValueError, ImportError, mlflow.MlflowException) as error:
        sys.stdout.write(f"{type(error).__name__}: {error}\n")
        return 1
    sys.stdout.write(f"{agreement}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
