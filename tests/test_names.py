"""The public names: these modules promise these names."""

import dataclasses
import importlib
import inspect
import typing

import pytest

PROMISE = {
    "training_core.config": ["RunConfig"],
    "training_core.utils": [
        "setup_logging",
        "set_seed",
        "setup_cache",
        "pick_precision",
        "validate_args",
        "log_system_info",
    ],
    "training_core.data_loader": [
        "load_jsonl",
        "build_user_message",
        "build_assistant_message",
        "format_as_chat",
        "build_datasets",
    ],
    "training_core.model_setup": ["default_qwen_target_modules", "load_model_and_tokenizer"],
    "training_core.trainer": ["create_training_arguments", "train_model"],
}


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in PROMISE.items() for name in names])
def test_public_name_is_in_its_module(module: str, name: str) -> None:
    """It may be defined in another module."""
    assert getattr(importlib.import_module(module), name).__module__.startswith("training_core.")


def test_utils_has_only_its_public_functions() -> None:
    """Utilities with a subject belong to the package of that subject."""
    utils = importlib.import_module("training_core.utils")
    functions = {
        name
        for name, value in inspect.getmembers(utils, inspect.isfunction)
        if value.__module__ == utils.__name__ and not name.startswith("_")
    }
    assert functions == set(PROMISE["training_core.utils"])


def test_optimiser_and_schedule_choices_exist_in_transformers() -> None:
    from transformers import SchedulerType
    from transformers.training_args import OptimizerNames

    from training_core.config import RunConfig

    choices = {field.name: typing.get_args(field.type) for field in dataclasses.fields(RunConfig)}
    assert set(choices["optim"]) <= {name.value for name in OptimizerNames}
    assert set(choices["lr_scheduler_type"]) <= {name.value for name in SchedulerType}
