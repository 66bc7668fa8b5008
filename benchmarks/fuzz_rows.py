"""Reads mutated lines and mutated files: each must end as rows, as rejected lines or as a bad file, never in a crash.

    python -m benchmarks.fuzz_rows --lines 1000000 --seed 0

Lines of all row formats get flipped bits, cuts, splices, tokens that are hard for JSON and chat templates, or values of
the wrong type. They are then read from files of all kinds, whose bytes are mutated too. Any other error ends the
command; the file that caused it is ``runs/fuzz/rows``.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from samples.cases import generate_rows
from samples.row_formats import CONTAINERS, FORMATS, to_text
from training_core.rows.files import BadFileError
from training_core.rows.reader import Rejected, read_rows

LINES_A_FILE = 50
MUTATED_FILES = 0.1
TOKENS = (
    *(
        b'"',
        b"\\",
        b"\\\\",
        b'\\"',
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"\n",
        b"\r",
        b"\x00",
        b"\xff",
        b"\xef\xbb\xbf",
    ),
    *(b"\\u0000", b"\\ud800", b"\\udc00", b"\\u0301", "\u0301".encode(), b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\xc2\x85"),
    *(b"NaN", b"Infinity", b"1e999", b"9" * 25, b"-", b"null", b"true", b'""', b"{}", b"[]", b'{"a":1,"a":2}'),
    *(b"[" * 70, b'{"a":' * 70, b"[" * 5_000, b"<|im_end|>", b"<think>", b'"output"', b'"messages"', b'"input":null,'),
)


VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        0,
        -1,
        10**30,
        1.5,
        "",
        " ",
        "\u0000",
        "e\u0301",
        "<|im_end|>",
        "{}",
        "x" * 3_000,
        [],
        {},
        [[]],
        ["x"],
    ),
    *({"role": "user", "content": "x"}, {"from": "gpt", "value": "{}"}, {"policy_document": ""}, [{"a": None}] * 3),
)


def make_lines(seed: int, count: int) -> list[bytes]:
    """Good lines of all row formats, with short policies, so that most mutations hit something else."""
    lines = []
    for place, row in enumerate(generate_rows(count, seed)):
        row["input"]["policy_document"] = row["input"]["policy_document"][:200]
        write = list(FORMATS.values())[place % len(FORMATS)]
        lines.append(json.dumps(write(row)).encode() if place % 5 == 0 else to_text(write(row)).encode())
    return lines


def mutate(raw: bytes, other: bytes, rng: Random) -> bytes:
    """The bytes after one to four random mutations."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        start, end = sorted(rng.randrange(len(raw) + 1) for _ in range(2))
        short = start + rng.randrange(1, 9)
        match rng.randrange(7):
            case 0:  # flip
                flipped = bytes([raw[start] ^ 1 << rng.randrange(8)]) if start < len(raw) else b""
                raw = raw[:start] + flipped + raw[start + 1 :]
            case 1:  # insert
                raw = raw[:start] + rng.choice(TOKENS) + raw[start:]
            case 2:  # replace
                raw = raw[:start] + rng.choice(TOKENS) + raw[short:]
            case 3:  # delete
                raw = raw[:start] + raw[short:]
            case 4:  # repeat
                raw = raw[:end] + raw[start:end][:500] + raw[end:]
            case 5:  # splice
                raw = raw[:start] + other[rng.randrange(len(other) + 1) :]
            case _:  # cut off
                raw = raw[:end] if rng.random() < 0.5 else raw[start:]
    return raw


def misplace(line: bytes, rng: Random) -> bytes:
    """A good line with one value replaced by one of ``VALUES``, or moved to another key."""
    row = json.loads(line)
    place: Any = row
    while True:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.2:
            break
        place = place[key]
    if isinstance(place, dict) and rng.random() < 0.4:
        place[rng.choice((key, key.upper(), "input", "output", "messages", "e\u0301"))] = place.pop(key)
    else:
        place[key] = rng.choice(VALUES)
    return to_text(row).encode()


def make_files(lines: int, seed: int) -> Iterator[tuple[bytes, int]]:
    """Files, each with the number of its lines. Parquet cannot hold a broken line, so its bytes are always mutated."""
    rng = Random(seed)
    good = make_lines(seed, 600)
    by_format = [good[place :: len(FORMATS)] for place in range(len(FORMATS))]
    left = lines
    while left > 0:
        container = rng.choice(list(CONTAINERS))
        chosen = rng.choices(rng.choice(by_format) if rng.random() < 0.8 else good, k=min(LINES_A_FILE, left))
        is_table = container == ".parquet"
        if is_table:
            chosen = by_format[0][: rng.randrange(1, 5)]
        else:
            chosen = [
                misplace(line, rng) if rng.random() < 0.5 else mutate(line, rng.choice(good), rng) for line in chosen
            ]
        content = CONTAINERS[container](chosen)
        if is_table or rng.random() < MUTATED_FILES:
            content = mutate(content, rng.choice(good), rng)
        left -= len(chosen)
        yield content, len(chosen)


def read(path: Path) -> Counter[str]:
    """How many lines of a file ended as what. Raises any error but ``BadFileError``."""
    counts: Counter[str] = Counter()
    try:
        for item in read_rows(str(path)):
            counts["rejected" if isinstance(item, Rejected) else "rows"] += 1
            str(item.problem if isinstance(item, Rejected) else item.record).encode()
    except BadFileError:
        counts["bad files"] += 1
    return counts


def fuzz(lines: int, seed: int, path: Path) -> Counter[str]:
    """How many lines and files ended as what. An error is raised on; the file that caused it is then at `path`."""
    counts: Counter[str] = Counter()
    for content, made in make_files(lines, seed):
        path.write_bytes(content)
        counts.update({"mutated lines": made, "files": 1})
        counts.update(read(path))
    path.unlink(missing_ok=True)
    return counts


def main() -> None:
    """Read mutated files and print the counts. An error of the reader ends the command; runs/fuzz/rows caused it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz_rows", description=main.__doc__)
    parser.add_argument("--lines", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()
    started = time.perf_counter(), time.process_time()
    path = Path("runs/fuzz/rows")
    path.parent.mkdir(parents=True, exist_ok=True)
    counts = fuzz(arguments.lines, arguments.seed, path)
    wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
    sys.stdout.write(f"{json.dumps(counts)}\n{wall:.0f} s, {cpu:.0f} CPU-s\n")


if __name__ == "__main__":
    main()
