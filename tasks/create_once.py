"""Creations in MLflow that happen once, although answers are lost and several processes create the same thing."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES
from mlflow.exceptions import MlflowException

Created = TypeVar("Created")


def found_or_created(
    find: Callable[[], Sequence[Created]], create: Callable[[], object]
) -> tuple[Created, list[Created]]:
    """The first thing that ``find`` lists, created when it lists none, and the others that it lists.

    There are others when several processes created it at once, or when a server was late with what it was asked for
    long ago. ``find`` must list things in the same order to all; the others are for the caller to delete. Raises what
    ``create`` raises, unless the thing is there: then only the server's answer was lost.
    """
    found = find()
    if not found:
        try:
            with sent_once():
                create()
        except MlflowException:
            if not find():
                raise
        found = find()
    return found[0], list(found[1:])


@contextlib.contextmanager
def sent_once() -> Iterator[None]:
    """MLflow's client repeats every request whose answer it misses, so that a creation may happen twice."""
    retries = MLFLOW_HTTP_REQUEST_MAX_RETRIES.get_raw()
    MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(0)
    try:
        yield
    finally:
        if retries is None:
            MLFLOW_HTTP_REQUEST_MAX_RETRIES.unset()
        else:
            MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(retries)
