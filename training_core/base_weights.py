"""The files of a base model as they were released: whole or not, and what they call the weights."""

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path

INDEX = "model.safetensors.index.json"
_LFS = b"version https://git-lfs.github.com/spec/"
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")


def file_problems(base: Path) -> list[str]:
    """Files that are pointers, cut or missing; of the weights only their headers are read."""
    files = sorted(path for pattern in ("*.json", "*.jinja", "*.txt", "*.safetensors") for path in base.glob(pattern))
    if pointers := [path.name for path in files if _starts_with(path, _LFS)]:
        fix = f"run git lfs pull in {base}"
        return [f"model_name: {', '.join(pointers)} is a Git LFS pointer, not the file itself; {fix}"]
    return [*_missing(base), *(problem for path in base.glob("*.safetensors") for problem in _damage(path))]


def _starts_with(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start


def _missing(base: Path) -> list[str]:
    """The shards that the index or the names of other shards speak of."""
    expected = set(_index(base).values())
    for path in base.glob("*.safetensors"):
        if match := _SHARD.fullmatch(path.name):
            name, count = match.groups()
            expected |= {f"{name}-{number:05d}-of-{count}.safetensors" for number in range(1, int(count) + 1)}
    missing = sorted(name for name in expected if not (base / name).is_file())
    return [f"model_name: {base} lacks {', '.join(missing)}; copy or download the base again"] if missing else []


def _index(base: Path) -> dict[str, str]:
    file = base / INDEX
    try:
        return dict(json.loads(file.read_bytes())["weight_map"]) if file.is_file() else {}
    except (ValueError, LookupError, TypeError):
        return {}


def _damage(path: Path) -> Iterator[str]:
    """A file of weights is a header's length in eight bytes, the header as JSON, and the bytes that it speaks of."""
    again = "copy or download it again"
    size = path.stat().st_size
    try:
        start, header = _header(path)
        expected = start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, LookupError, TypeError, AttributeError, struct.error):
        yield f"model_name: {path} is no file of weights, or its beginning is damaged; {again}"
        return
    if size != expected:
        yield f"model_name: expected {expected:,} bytes in {path}, found {size:,}; {again}"


def _header(path: Path) -> tuple[int, dict[str, dict[str, list[int]]]]:
    """Where the weights begin, and the entry of each."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        content = file.read(min(length, path.stat().st_size))
    header = json.loads(content)
    header.pop("__metadata__", None)
    return 8 + length, header


def weight_files(base: Path) -> dict[str, str]:
    """The file of each weight as released, by the weight's name."""
    names = {name: path.name for path in sorted(base.glob("*.safetensors")) for name in _header(path)[1]}
    return _index(base) or names


def weight_shapes(base: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each weight as released, by the weight's name; only headers are read."""
    headers = [_header(base / file)[1] for file in sorted(set(weight_files(base).values()))]
    return {name: tuple(entry["shape"]) for header in headers for name, entry in header.items()}


def text_prefix(base: Path) -> str:
    """What precedes the names of a language model's weights as released: ``model.``, or ``model.language_model.``

    where it is a part of a model that also sees.
    """
    names = (name for path in sorted(base.glob("*.safetensors")) for name in _header(path)[1])
    end = "embed_tokens.weight"
    return next(
        (name.removesuffix(end) for name in names if name.startswith("model.") and name.endswith(end)), "model."
    )
