"""An adapter packaged as an MLflow model made of source files: no pickle, no copy of the base."""

import importlib.metadata
from pathlib import Path

import mlflow
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from mlflow.types.schema import Array, DataType

import training_core
from tasks.refs import TrainedRef
from training_core.config import Constrain

SERVED_BY = (
    *("mlflow", "torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets"),
    *("llguidance", "orjson", "tiktoken", "pydantic", "pyyaml", "scikit-learn", "scipy", "rich", "pandas"),
)


def package_adapter(
    trained: TrainedRef,
    base_name: str,
    max_new_tokens: int,
    folder: Path,
    constrain: Constrain = "none",
    min_confidence: float | None = None,
) -> None:
    """Write the model that the registry serves: see ``tasks.served_adapter`` for its input and output, and for the
    settings that it is served with."""
    requirements = [f"{name}=={_version(name)}" for name in SERVED_BY]
    asked = [ColSpec(DataType.string, name, required=False) for name in ("instruction", "input", "messages")]
    answer = (
        *(ColSpec(DataType.string, "answer"), ColSpec(Array(DataType.long), "token_ids")),
        *(ColSpec(DataType.double, "confidence", required=False), ColSpec(DataType.boolean, "hand_over")),
    )
    mlflow.pyfunc.save_model(
        folder,
        python_model=str(Path(__file__).parent / "served_adapter.py"),
        artifacts={"adapter": trained.adapter.path},
        model_config={
            "base_model": base_name,
            "base_digest": trained.run.base_digest,
            "base_commit": trained.run.base_commit,
            "adapter_digest": trained.adapter.digest,
            "max_new_tokens": max_new_tokens,
            "constrain": constrain,
            "min_confidence": min_confidence,
        },
        code_paths=[str(Path(training_core.__file__).parent)],
        signature=ModelSignature(inputs=Schema(asked), outputs=Schema(list(answer))),
        pip_requirements=requirements,
    )


def _version(package: str) -> str:
    return importlib.metadata.version(package).partition("+")[0]
