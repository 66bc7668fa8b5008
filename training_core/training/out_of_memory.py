"""Out of memory on a GPU, wherever it happens, as one message with its remedy."""

import contextlib
from collections.abc import Iterator

import torch

from training_core.config import SettingsError


@contextlib.contextmanager
def explain_out_of_memory(what: str, fix: str) -> Iterator[None]:
    """Turn the GPU's out of memory in the body into a ``SettingsError`` of one sentence."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(". ")[0]
        raise SettingsError([f"memory: {what} does not fit on the GPU ({reason}); {fix}"]) from error
