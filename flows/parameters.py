"""Flow parameters generated from RunConfig: flat, in its order, with its help, bounds and choices."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, TypeVar

from pydantic import Field
from pydantic.fields import FieldInfo

from training_core.config import read_settings, settings_info

Result = TypeVar("Result")


def takes_settings(body: Callable[..., Result]) -> Callable[..., Result]:
    """Make a function of a ``RunConfig`` take the settings as flat keyword arguments.

    Prefect generates a flow's form, validation and API from its signature and docstring. Both are generated from
    RunConfig here, so ``-p learning_rate=1e-4`` changes one setting and keeps a deployment's others. Further parameters
    of the function come before the settings; each needs a default and an annotation with its help.
    """

    @wraps(body)
    def with_flat_settings(**given: Any) -> Result:
        further = {name: given.pop(name) for name in others.keys() & given.keys()}
        return body(read_settings(given), **further)

    others = _other_parameters(body)
    infos = others | settings_info()
    signature = inspect.Signature([_parameter(name, info) for name, info in infos.items()])
    with_flat_settings.__signature__ = signature  # type: ignore[attr-defined]
    lines = [f"    {name}: {info.description}" for name, info in infos.items()]
    with_flat_settings.__doc__ = "\n".join([inspect.getdoc(body) or "", "", "Args:", *lines])
    return with_flat_settings


def _other_parameters(body: Callable[..., Any]) -> dict[str, FieldInfo]:
    _config, *others = inspect.signature(body).parameters.values()
    return {other.name: FieldInfo.from_annotated_attribute(other.annotation, other.default) for other in others}


def _parameter(name: str, info: FieldInfo) -> inspect.Parameter:
    annotation = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
    if info.annotation == str | None:
        # The form shows these titles as tabs; the setting's help says what empty means.
        annotation = Annotated[str, *info.metadata, Field(title="text")] | Annotated[None, Field(title="empty")]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=info.default, annotation=annotation)
