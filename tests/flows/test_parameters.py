"""The settings as flow parameters: flat, in RunConfig's order, with its help, bounds and choices."""

import dataclasses
import inspect
from typing import Annotated, Any

import pytest
from prefect import Flow
from prefect.utilities.callables import parameter_schema
from pydantic import Field

from flows.parameters import takes_settings
from training_core.config import RunConfig, SettingsError, settings_info


@takes_settings
def body(config: RunConfig) -> RunConfig:
    """Do it."""
    return config


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return parameter_schema(body).model_dump()


def test_parameters_arrive_as_one_config() -> None:
    assert body() == RunConfig()
    assert body(learning_rate=1e-4, favourable_decisions=["x"]) == RunConfig(
        learning_rate=1e-4, favourable_decisions=("x",)
    )
    assert body(**vars(RunConfig(seed=9))) == RunConfig(seed=9)


def test_parameters_that_are_wrong_are_all_reported() -> None:
    with pytest.raises(SettingsError) as caught:
        body(learning_rate=-1, lora_rr=3)
    assert {line.partition(":")[0] for line in caught.value.problems} == {"learning_rate", "lora_rr"}


def test_parameters_have_the_settings_order_and_defaults() -> None:
    parameters = inspect.signature(body).parameters
    config = RunConfig()
    assert [(p.name, p.default) for p in parameters.values()] == [
        (field.name, getattr(config, field.name)) for field in dataclasses.fields(RunConfig)
    ]


def test_form_shows_every_setting_in_order_with_help(schema: dict[str, Any]) -> None:
    properties = schema["properties"]
    in_order = sorted(properties, key=lambda name: properties[name]["position"])
    assert in_order == list(settings_info())
    for name, info in settings_info().items():
        assert properties[name]["description"] == info.description
        assert not schema.get("required")


def test_form_has_bounds_choices_and_defaults(schema: dict[str, Any]) -> None:
    properties = schema["properties"]
    assert properties["learning_rate"]["exclusiveMinimum"] == 0
    assert (properties["val_split"]["minimum"], properties["val_split"]["exclusiveMaximum"]) == (0, 1)
    assert properties["optim"]["enum"][0] == "adamw_torch_fused"
    assert properties["packing"]["type"] == "boolean"
    assert properties["registered_model_name"]["pattern"]
    assert properties["lora_r"]["default"] == RunConfig().lora_r


def test_form_titles_the_empty_choice_of_optional_text(schema: dict[str, Any]) -> None:
    text, empty = schema["properties"]["train_on"]["anyOf"]
    assert (text["title"], empty["title"]) == ("text", "empty")
    assert text["pattern"] and empty["type"] == "null"


def test_parameters_shadow_no_method_of_pydantic_models() -> None:
    """https://docs.pydantic.dev: a field named `schema` or `json` shadows one of BaseModel's."""
    assert not settings_info().keys() & {"register", "schema", "json", "copy", "validate", "dict", "construct"}


def test_parameters_are_validated_by_prefect() -> None:
    flow = Flow(body, name="any")
    validated = flow.validate_parameters({"learning_rate": "2e-4", "val_split": 0.2, "favourable_decisions": ["a"]})
    assert (validated["learning_rate"], validated["val_split"]) == (2e-4, 0.2)
    assert body(**validated) == RunConfig(learning_rate=2e-4, val_split=0.2, favourable_decisions=("a",))
    for wrong in ({"learning_rate": -1}, {"optim": "x"}, {"seed": 2**32}, {"model_name": ""}):
        with pytest.raises(Exception, match=next(iter(wrong))):
            flow.validate_parameters(wrong)


def test_parameters_of_the_function_precede_the_settings() -> None:
    @takes_settings
    def further(config: RunConfig, version: Annotated[str, Field(description="Which.")] = "old") -> tuple[int, str]:
        """Do it."""
        return config.seed, version

    assert further(seed=3) == (3, "old")
    assert further(version="7") == (42, "7")
    first = parameter_schema(further).model_dump()["properties"]["version"]
    assert (first["position"], first["description"], first["default"]) == (0, "Which.", "old")
    with pytest.raises(SettingsError, match="versoin"):
        further(versoin="7")


def test_parameters_keep_the_functions_name_and_summary() -> None:
    assert body.__name__ == "body"
    assert (body.__doc__ or "").startswith("Do it.")
