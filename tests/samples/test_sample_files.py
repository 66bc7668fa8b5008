"""Files of sample rows are complete and reproducible, and every bad line is counted."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from samples.bad_lines import BAD_KINDS, DUPLICATE, GOOD, OVERLONG_CHARS, Line, plant_bad_lines
from samples.cases import generate_rows, main, write_rows

COUNT = 600


@pytest.fixture(scope="module")
def lines() -> list[Line]:
    return list(plant_bad_lines(generate_rows(COUNT, seed=4), share=0.1, seed=4))


def reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def find_fault(data: bytes) -> str:
    """Name the fault of a line without knowing what was planted."""
    try:
        row: Any = json.loads(data.decode(), parse_constant=reject_constant)
    except UnicodeDecodeError:
        return "invalid_utf8"
    except json.JSONDecodeError:
        return "truncated_json"
    except ValueError:
        return "nan_constant"
    if row["input"] is None:
        return "null_input"
    if "output" not in row:
        return "missing_output"
    if isinstance(row["output"], str):
        return "text_output"
    return find_faulty_field(row["output"])


def find_faulty_field(output: dict[str, Any]) -> str:
    if output["decision"] is None:
        return "null_decision"
    if not output["reason"].strip():
        return "empty_reason"
    if not output["customer_response"].strip():
        return "empty_response"
    return "overlong" if len(output["customer_response"]) >= OVERLONG_CHARS else GOOD


def test_lines_have_the_fault_of_their_kind(lines: list[Line]) -> None:
    seen: set[bytes] = set()
    for line in lines:
        fault = DUPLICATE if line.data in seen else find_fault(line.data)
        assert fault == line.kind
        seen.add(line.data)


def test_lines_are_one_per_row(lines: list[Line]) -> None:
    assert len(lines) == COUNT
    assert all(line.data.endswith(b"\n") and line.data.count(b"\n") == 1 for line in lines)


def test_bad_lines_of_each_kind_are_equally_frequent(lines: list[Line]) -> None:
    planted = Counter(line.kind for line in lines if line.kind != GOOD)
    assert set(planted) == set(BAD_KINDS)
    assert max(planted.values()) - min(planted.values()) <= 1
    assert 0.06 < planted.total() / COUNT < 0.14


def test_good_lines_are_the_generated_rows(lines: list[Line]) -> None:
    rows = list(generate_rows(COUNT, seed=4))
    assert all(json.loads(line.data) == row for line, row in zip(lines, rows, strict=True) if line.kind == GOOD)


def test_share_of_bad_lines_is_validated() -> None:
    with pytest.raises(ValueError, match=r"share of bad lines .* got 1\.5"):
        next(plant_bad_lines(generate_rows(1, seed=1), share=1.5, seed=1))


def test_write_rows_counts_every_kind_exactly(tmp_path: Path, lines: list[Line]) -> None:
    path = tmp_path / "rows.jsonl"
    summary = write_rows(path, COUNT, seed=4, bad_share=0.1)
    assert summary == {"lines": COUNT, **Counter(line.kind for line in lines)}
    assert path.read_bytes() == b"".join(line.data for line in lines)


def test_write_rows_is_deterministic_per_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_rows(tmp_path / name, 100, seed, bad_share=0.05)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_write_rows_keeps_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="share of bad lines"):
        write_rows(path, 10, seed=1, bad_share=2)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_command_writes_the_file_and_a_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    flags = ["--rows", "40", "--seed", "7", "--bad_share", "0"]
    monkeypatch.setattr(sys, "argv", ["samples.cases", str(path), *flags])
    main()
    assert capsys.readouterr().out == f'{path}: {{"lines": 40, "good": 40}}\n'
    assert len(path.read_bytes().splitlines()) == 40
