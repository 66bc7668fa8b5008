"""Finds a data file in an installed package without importing the package, whose own dependencies may be missing."""

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path


def packaged_file(distribution: str, suffix: str) -> Path:
    """The one file of a distribution with this suffix. Raises ``ModuleNotFoundError`` when it is not installed."""
    try:
        found = [file for file in files(distribution) or () if file.suffix == suffix]
    except PackageNotFoundError as error:
        raise ModuleNotFoundError(f"expected the package {distribution}, found none; run `make pretrained`") from error
    (file,) = found
    return Path(str(file.locate()))
