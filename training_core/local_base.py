"""Which folder a base model's name means; apart from all else because checking settings needs no model code."""

import os
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def base_folder(model_name: str) -> Path | None:
    """The folder in the working directory, or the one that ships with the project; ``None`` of a name on the hub."""
    places = (Path(model_name), PROJECT / model_name)
    # Unlike Path.is_dir, os.path's takes a name of any length.
    return next((place.resolve() for place in places if os.path.isdir(place)), None)  # noqa: PTH112
