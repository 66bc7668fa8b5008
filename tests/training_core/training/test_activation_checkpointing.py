"""Activation checkpointing is enabled by the name that the installed transformers has."""

import warnings
from pathlib import Path

import pytest
from tiny_models import tiny_model
from transformers import TrainingArguments

from training_core.training.activation_checkpointing import checkpointing_arguments, enable_checkpointing


@pytest.fixture(autouse=True)
def _no_deprecated_names() -> None:
    warnings.simplefilter("error", FutureWarning)  # pytest restores the filters after the test


@pytest.mark.parametrize("enabled", [True, False])
def test_checkpointing_arguments_reach_the_trainer(tmp_path: Path, enabled: bool) -> None:
    given = checkpointing_arguments(enabled=enabled)
    arguments = TrainingArguments(str(tmp_path), **given)
    assert {name: getattr(arguments, name) for name in given} == given
    assert enabled in given.values()


def test_checkpointing_is_enabled_in_every_block() -> None:
    model = tiny_model("qwen2", vocab_size=64)
    blocks = model.base_model.layers
    assert not any(block.gradient_checkpointing for block in blocks)
    enable_checkpointing(model)
    assert all(block.gradient_checkpointing for block in blocks)
