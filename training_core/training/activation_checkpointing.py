"""Activation checkpointing, by the name in the installed transformers: older versions say gradient checkpointing."""

import dataclasses
from typing import Any

from transformers import PreTrainedModel, TrainingArguments

_OPTIONS = {"use_reentrant": False}


def checkpointing_arguments(*, enabled: bool) -> dict[str, Any]:
    """The trainer's arguments that enable it, or disable it."""
    return {_name(): enabled, f"{_name()}_kwargs": dict(_OPTIONS) if enabled else None}


def enable_checkpointing(model: PreTrainedModel) -> None:
    """Recompute the activations of ``model`` in the backward pass, as the trainer does with these arguments."""
    getattr(model, f"{_name()}_enable")(dict(_OPTIONS))


def _name() -> str:
    arguments = {field.name for field in dataclasses.fields(TrainingArguments)}
    return next(name for name in ("activation_checkpointing", "gradient_checkpointing") if name in arguments)
