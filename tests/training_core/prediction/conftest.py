"""Shared by tests of prediction: a tiny version that answers, and a job for its cases."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny_model, write_base

from training_core.config import RunConfig
from training_core.model_setup import load_model_and_tokenizer, load_tokenizer
from training_core.prediction.answering import Answerer
from training_core.prediction.cases import find_cases
from training_core.prediction.job import Job
from training_core.training.adapter import write_adapter

NewJob = Callable[..., Job]


@pytest.fixture(scope="session")
def answerer(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Answerer:
    """A random version whose answers differ from case to case; a part has 16 cases."""
    folder, words = tmp_path_factory.mktemp("version"), len(load_tokenizer(tiny_base))
    torch.manual_seed(0)
    write_base(tiny_model("qwen3", vocab_size=words, initializer_range=0.2), tiny_base, folder / "base")
    settings = {"eval_max_new_tokens": 3, "eval_batch_size": 2, "quantisation": "none", "constrain": "none"}
    config = RunConfig(model_name=str(folder / "base"), **settings)
    made = load_model_and_tokenizer(config)
    write_adapter(made.model, made.tokenizer, config, np.array([7], np.uint64), folder / "adapter")
    return Answerer(folder / "base", folder / "adapter", config)


@pytest.fixture
def new_job(answerer: Answerer, tmp_path: Path) -> NewJob:
    def new(rows: str, output: str | None = str(tmp_path / "answers.jsonl"), adapter: str = "a") -> Job:
        parts = f"{output}.parts" if output else str(tmp_path / "parts")
        return Job(find_cases(rows), answerer, "models:/name/1", adapter, "b", parts, output)

    return new
