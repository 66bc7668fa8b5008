"""The files of a base model as they were released: whole or not, and what they call the weights."""

import json
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_LFS = b"version https://git-lfs.github.com/spec/"
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")
_FILES = ("*.json", "*.jinja", "*.txt", "*.safetensors")
# What transformers reads as objects of JSON, where it is there.
_OBJECTS = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", INDEX),
)
_AGAIN = "copy or download it again"
_LONGEST_HEADER = 100_000_000  # that the library reads


class Weight(NamedTuple):
    """A weight as released: its number format, such as ``BF16``, and its shape."""

    dtype: str
    shape: tuple[int, ...]


def file_problems(base: Path) -> list[str]:
    """Files that are pointers, cut, missing or no files; of the weights only their headers are read."""
    files = sorted(path for pattern in _FILES for path in base.glob(pattern))
    if unreadable := [f"model_name: {path} is {why}; {_AGAIN}" for path in files if (why := _unreadable(path))]:
        return unreadable
    if pointers := [path.name for path in files if _starts_with(path, _LFS)]:
        fix = f"run git lfs pull in {base}"
        return [f"model_name: {', '.join(pointers)} is a Git LFS pointer, not the file itself; {fix}"]
    if not_objects := [problem for name in _OBJECTS for problem in _json_problems(base / name)]:
        return not_objects
    return [*_index_problems(base), *(problem for path in base.glob("*.safetensors") for problem in _damage(path))]


def _unreadable(path: Path) -> str:
    """Why there is no file to read; nothing else is opened: a pipe would never end."""
    if not path.exists():
        return "a link to a file that does not exist"
    if not path.is_file():
        return "a folder" if path.is_dir() else "not a regular file"
    return "" if os.access(path, os.R_OK) else "a file that this user may not read"


def _starts_with(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start


def _json_problems(path: Path) -> Iterator[str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        yield f"model_name: {path} is not JSON ({error}); {_AGAIN}"
        return
    if not isinstance(found, dict):
        yield f"model_name: {path} is not a JSON object; {_AGAIN}"


def _index_problems(base: Path) -> list[str]:
    """The files that transformers would look for and not find: the only one, or those that the index speaks of."""
    if (base / "adapter_config.json").is_file():  # transformers would load the base that it names
        return [f"model_name: {base} holds an adapter; give the base that it was trained on"]
    if (base / INDEX).is_file() and not _index(base):
        return [f"model_name: {base / INDEX} does not name the file of each weight; {_AGAIN}"]
    names = set(_index(base).values())
    if outside := sorted(name for name in names if name != Path(name).name or not name.endswith(".safetensors")):
        return [f"model_name: {base / INDEX} names files that are not in its folder: {', '.join(outside)}; {_AGAIN}"]
    if (base / WHOLE).is_file():
        return []
    missing = sorted(name for name in _expected(base) if not (base / name).is_file())
    return [f"model_name: {base} lacks {', '.join(missing)}; copy or download the base again"] if missing else []


def _expected(base: Path) -> set[str]:
    """The files that the index or the names of shards speak of."""
    expected = set(_index(base).values())
    for path in base.glob("*.safetensors"):
        if match := _SHARD.fullmatch(path.name):
            name, count = match.groups()
            expected |= {INDEX, *(f"{name}-{number:05d}-of-{count}.safetensors" for number in range(1, int(count) + 1))}
    return expected or {WHOLE}


def _index(base: Path) -> dict[str, str]:
    """The file of each weight; empty where there is no usable index."""
    if not (base / INDEX).is_file():
        return {}
    found = json.loads((base / INDEX).read_text(encoding="utf-8")).get("weight_map")
    return found if isinstance(found, dict) and all(isinstance(file, str) for file in found.values()) else {}


def _damage(path: Path) -> Iterator[str]:
    """A file of weights is a header's length in eight bytes, the header as JSON, and the bytes that it speaks of."""
    size = path.stat().st_size
    try:
        expected = _header(path)[1]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error):
        yield f"model_name: {path} is no file of weights, or its beginning is damaged; {_AGAIN}"
        return
    if size != expected:
        yield f"model_name: expected {expected:,} bytes in {path}, found {size:,}; {_AGAIN}"


def _header(path: Path) -> tuple[dict[str, Weight], int]:
    """The weights by name, and the bytes that a file of them has."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _LONGEST_HEADER:
            raise ValueError("the header is longer than any")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    weights = {name: Weight(entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
    return weights, 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)


def weight_files(base: Path) -> dict[str, str]:
    """The file of each weight as released, by the weight's name."""
    if (base / WHOLE).is_file():
        return dict.fromkeys(_header(base / WHOLE)[0], WHOLE)
    return _index(base) or {name: path.name for path in sorted(base.glob("*.safetensors")) for name in _header(path)[0]}


def released_weights(base: Path) -> dict[str, Weight]:
    """Each weight as released, by its name; only headers are read."""
    files = sorted(set(weight_files(base).values()))
    return {name: weight for file in files for name, weight in _header(base / file)[0].items()}


def weight_shapes(base: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each weight as released, by the weight's name; only headers are read."""
    return {name: weight.shape for name, weight in released_weights(base).items()}


def weights_not_finite(base: Path) -> list[str]:
    """The names of released weights with an infinity or a NaN; all of them are read, one in memory at a time."""
    bad = []
    for file in sorted(set(weight_files(base).values())):
        with safe_open(base / file, framework="pt") as weights:
            bad += [name for name in sorted(weights.keys()) if not weights.get_tensor(name).isfinite().all()]
    return bad


def text_prefix(base: Path) -> str:
    """What precedes the names of a language model's weights as released: ``model.``, or ``model.language_model.``

    where it is a part of a model that also sees.
    """
    end = "embed_tokens.weight"
    return next(
        (name.removesuffix(end) for name in weight_files(base) if name.startswith("model.") and name.endswith(end)),
        "model.",
    )
