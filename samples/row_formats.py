"""Writes a row in every supported format, and lines in every supported container."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable, Sequence
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq

from samples.bad_lines import Row


def to_text(value: object) -> str:
    """Return a value as one line of JSON, without escaping other alphabets."""
    return json.dumps(value, ensure_ascii=False)


def native(row: Row) -> Row:
    """Keep the native format."""
    return {key: row[key] for key in ("instruction", "input", "output")}


def messages(row: Row) -> Row:
    """Write system, user and assistant turns."""
    return {"messages": [*_question(row), {"role": "assistant", "content": to_text(row["output"])}]}


def conversations(row: Row) -> Row:
    """Write the same turns in the ShareGPT format."""
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    turns = messages(row)["messages"]
    return {"conversations": [{"from": names[turn["role"]], "value": turn["content"]} for turn in turns]}


def alpaca(row: Row) -> Row:
    """Write case and answer as text."""
    return {"instruction": row["instruction"], "input": to_text(row["input"]), "output": to_text(row["output"])}


def prompt_completion(row: Row) -> Row:
    """Write prompt and completion as text."""
    return {"prompt": f"{row['instruction']}\n\n{to_text(row['input'])}", "completion": to_text(row["output"])}


def prompt_completion_turns(row: Row) -> Row:
    """Write prompt and completion as lists of turns."""
    return {"prompt": _question(row), "completion": [{"role": "assistant", "content": to_text(row["output"])}]}


def _question(row: Row) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": row["instruction"]},
        {"role": "user", "content": to_text(row["input"])},
    ]


FORMATS: dict[str, Callable[[Row], Row]] = {
    write_as.__name__: write_as
    for write_as in (native, messages, conversations, alpaca, prompt_completion, prompt_completion_turns)
}


def jsonl(lines: Sequence[bytes]) -> bytes:
    """End every line with a newline."""
    return b"".join(line + b"\n" for line in lines)


def json_array(lines: Sequence[bytes]) -> bytes:
    """Join the lines to a JSON array."""
    return b"[\n" + b",\n".join(lines) + b"\n]\n"


def gzipped(lines: Sequence[bytes]) -> bytes:
    """Compress the lines with gzip."""
    return gzip.compress(jsonl(lines), mtime=0)


def zstandard(lines: Sequence[bytes]) -> bytes:
    """Compress the lines with zstd."""
    return bytes(pa.compress(jsonl(lines), codec="zstd", asbytes=True))


def bzip2(lines: Sequence[bytes]) -> bytes:
    """Compress the lines with bzip2."""
    return bz2.compress(jsonl(lines))


def xz(lines: Sequence[bytes]) -> bytes:
    """Compress the lines with xz."""
    return lzma.compress(jsonl(lines))


def parquet(lines: Sequence[bytes]) -> bytes:
    """Write lines, which must be valid JSON, as a Parquet table."""
    file = BytesIO()
    pq.write_table(pa.Table.from_pylist([json.loads(line) for line in lines]), file)
    return file.getvalue()


CONTAINERS: dict[str, Callable[[Sequence[bytes]], bytes]] = {
    ".jsonl": jsonl,
    ".json": json_array,
    ".jsonl.gz": gzipped,
    ".jsonl.zst": zstandard,
    ".jsonl.bz2": bzip2,
    ".jsonl.xz": xz,
    ".parquet": parquet,
}
