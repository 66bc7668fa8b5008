"""Shared by all tests: no network, no home folder, a tiny base model, sample rows, and restored loggers."""

import json
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Libraries read these when they are imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
# Models of tests are too small for threads, and threads that wait by spinning take the cores from the servers.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="sft-flow-prefect-")


@pytest.fixture(autouse=True)
def _restored_loggers() -> Iterator[None]:
    loggers = [logging.getLogger(), logging.getLogger("training_core")]
    before = [(logger, logger.level, logger.handlers[:], logger.propagate) for logger in loggers]
    yield
    for logger, level, handlers, propagate in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.propagate = propagate


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny untrained Qwen2 base model with its own tokenizer."""
    import torch

    from samples.cases import generate_rows
    from samples.tiny_base import build_model, train_tokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny_base")
    texts = (json.dumps(row, ensure_ascii=False).replace("\\n", "\n") for row in generate_rows(200, seed=1))
    tokenizer = train_tokenizer(texts, vocabulary=1000)
    tokenizer.save_pretrained(folder)
    build_model(len(tokenizer)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sample_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 120 sample rows, a few of them bad."""
    from samples.cases import write_rows

    path = tmp_path_factory.mktemp("sample_rows") / "rows.jsonl"
    write_rows(path, count=120, seed=7, bad_share=0.08)
    return path


@pytest.fixture(scope="session")
def decisive(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A ``decisive_adapter.Decisive``: a small trained adapter that decides otherwise than its base."""
    from decisive_adapter import train_decisive

    return train_decisive(tmp_path_factory.mktemp("decisive"))


@pytest.fixture(scope="session")
def registered_decisive(decisive: Any) -> Any:
    """Settings that find the same adapter as champion of the registered model ``returns``."""
    from decisive_adapter import register_decisive

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return register_decisive(decisive, "returns")


@pytest.fixture(scope="session")
def prefect_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API URL of a real Prefect server with all its services."""
    from flows.local_servers import prefect_server

    with prefect_server(tmp_path_factory.mktemp("prefect"), preferred_port=0, for_workers=True) as server:
        yield f"{server.wait()}/api"


@pytest.fixture
def prefect_api(prefect_address: str) -> Iterator[str]:
    """The same URL, as the API of this process."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect_address}):
        yield prefect_address
