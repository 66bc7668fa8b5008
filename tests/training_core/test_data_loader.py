"""Every line of every file is counted exactly once, in any row format and container."""

import subprocess
import sys
from pathlib import Path

import pytest
from row_samples import Built, build, records, to_line, write
from transformers import PreTrainedTokenizerFast

from samples.bad_lines import CORRUPTIONS, plant_bad_lines
from samples.cases import generate_rows, write_rows
from samples.row_formats import CONTAINERS, FORMATS
from training_core.dataset import ingest
from training_core.dataset.report import Account, DataReport
from training_core.model_setup import load_tokenizer
from training_core.rows import files


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(tiny_base)


def assert_splits_match_accounts(built: Built) -> None:
    accounts = built.report.accounts
    assert len(built.train) == sum(account.trained for account in accounts)
    assert len(built.held_out) == sum(account.held_out for account in accounts)
    for decision in built.report.decisions:
        assert built.train["decision"][:].count(decision.decision) == decision.trained
        assert built.held_out["decision"][:].count(decision.decision) == decision.held_out


def test_account_of_planted_bad_lines_is_exact(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "rows.jsonl"
    planted = write_rows(path, 400, seed=5, bad_share=0.3)
    assert all(planted.get(kind, 0) > 1 for kind in (*CORRUPTIONS, "duplicate"))
    built = build(path, tokenizer)
    (account,) = built.report.accounts
    assert account.lines == planted["lines"] == 400
    assert account.overlong == planted["overlong"]
    assert account.rejected == sum(planted[kind] for kind in CORRUPTIONS) - planted["overlong"]
    # A duplicate is a copy of a good line; no other line occurs twice.
    assert account.duplicates == planted["duplicate"]
    assert account.trained + account.held_out == planted["good"]
    assert len(built.report.problems) == account.rejected == built.rejected.count(b"\n")
    assert_splits_match_accounts(built)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("row_format", FORMATS)
def test_account_is_exact_in_every_format_and_container(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, row_format: str, container: str
) -> None:
    good = [to_line(FORMATS[row_format](row)) for row in records(9)]
    broken = [b"{", b"\xff", good[0][:-30]]
    if container == ".json":  # in an array, an unclosed bracket would swallow the lines after it
        broken = [b"3", b"\xff", b"{}"]
    if container == ".parquet":  # a table has no broken lines
        broken = [to_line(dict.fromkeys(FORMATS[row_format](records(1)[0])) | {"more": i}) for i in range(3)]
    path = tmp_path / f"rows{container}"
    path.write_bytes(CONTAINERS[container]([good[0], *broken, *good[1:], *good[3:5]]))
    built = build(path, tokenizer)
    (account,) = built.report.accounts
    assert (account.lines, account.rejected, account.duplicates) == (14, 3, 2)
    assert account.trained + account.held_out == 9
    assert account.format.startswith(row_format.split("_")[0])
    if container != ".parquet":
        assert built.rejected == b"\n".join([*broken, b""])
    assert_splits_match_accounts(built)


def test_account_that_does_not_add_up_raises() -> None:
    with pytest.raises(AssertionError):
        Account("x", "native", lines=10, trained=5, held_out=1, duplicates=1, rejected=1, overlong=1)


def test_account_exists_for_every_file(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "data").mkdir()
    first = write(tmp_path / "data" / "a.jsonl", [*records(6), b"{", records(1)[0]])
    chats = write(tmp_path / "data" / "b.jsonl", [FORMATS["messages"](row) for row in records(3, start=4)])
    held_out = write(tmp_path / "held_out.jsonl", [*records(3, start=100), b"[", b"]"])
    built = build(tmp_path / "data", tokenizer, eval_path=held_out)
    counts = {"lines": 8, "trained": 6, "held_out": 0, "duplicates": 1, "rejected": 1, "overlong": 0}
    assert built.report.accounts == [
        Account(held_out, "native", 5, trained=0, held_out=3, duplicates=0, rejected=2, overlong=0),
        Account(first, "native", **counts),
        Account(chats, "messages, cases", 3, trained=1, held_out=0, duplicates=2, rejected=0, overlong=0),
    ]
    assert_splits_match_accounts(built)


def test_rejected_lines_are_kept_byte_for_byte(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Also if a file ends without a newline and the next one begins with a bad line."""
    lines = list(plant_bad_lines(generate_rows(200, seed=3), share=0.5, seed=3))
    rejected = [line.data for line in lines if line.kind in CORRUPTIONS and line.kind != "overlong"]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_bytes(b"".join(line.data for line in lines) + b"\xff last\r")
    (tmp_path / "data" / "b.jsonl").write_bytes(b"first\r\n\x00")
    built = build(tmp_path / "data", tokenizer)
    assert built.rejected == b"".join([*rejected, b"\xff last\r\n", b"first\r\n", b"\x00\n"])


def test_rejected_line_beyond_the_maximum_is_kept_whole(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1_000)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_bytes(b"\n".join([*map(to_line, records(5)), b"x" * 5_500]))
    (tmp_path / "data" / "b.jsonl").write_bytes(b"{\n" + b"[" + to_line(records(1, start=9)[0]) + b"," + b"y" * 2_000)
    built = build(tmp_path / "data", tokenizer)
    assert [account.rejected for account in built.report.accounts] == [1, 2]
    assert built.rejected.split(b"\n")[:2] == [b"x" * 5_500, b"{"]


def test_truncated_file_is_a_failure_with_its_rows_reported(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(CONTAINERS[".jsonl.gz"]([to_line(row) for row in generate_rows(2_000, seed=1)])[:-100])
    built = build(path, tokenizer)
    assert "cannot read the whole file" in built.report.failures[0]
    assert built.report.accounts[0].lines > 0


def test_build_datasets_does_not_depend_on_chunk_size(
    sample_rows: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build(sample_rows, tokenizer)
    monkeypatch.setattr(ingest, "_CHUNK_ROWS", 7)
    pieces = build(sample_rows, tokenizer)
    assert pieces.train[:] == whole.train[:]
    assert pieces.held_out[:] == whole.held_out[:]
    assert pieces.report == whole.report


def test_build_datasets_is_deterministic(sample_rows: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    first, second = build(sample_rows, tokenizer), build(sample_rows, tokenizer)
    assert first.train[:] == second.train[:]
    assert first.held_out[:] == second.held_out[:]
    assert first.report == second.report


def test_data_report_save_and_load_round_trip(
    sample_rows: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    report = build(sample_rows, tokenizer, packing=True, max_seq_length=1500).report
    assert report.problems and report.findings and report.packing
    report.save(tmp_path / "report.json")
    assert DataReport.load(tmp_path / "report.json") == report


def test_packing_estimate_from_the_first_rows_says_so(
    sample_rows: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training_core.data_loader._ROWS_FOR_PACKING", 20)
    assert build(sample_rows, tokenizer, packing=True).report.packing.endswith("(estimated from the first 20 rows)")


MEASURE = """
import sys, resource
from pathlib import Path
from training_core.config import RunConfig
from training_core.data_loader import build_datasets
from training_core.model_setup import load_tokenizer
rows, base, folder = map(Path, sys.argv[1:])
folder.mkdir()
build_datasets(RunConfig(dataset_path=str(rows), packing=False), load_tokenizer(base), folder)
sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
"""


@pytest.mark.slow
def test_build_datasets_memory_is_small_per_row(tmp_path: Path, tiny_base: Path) -> None:
    """Only the facts of each row stay in memory, at most a few hundred bytes."""
    peaks = []
    for rows in (8_000, 32_000):
        path = tmp_path / f"{rows}.jsonl"
        write_rows(path, rows, seed=rows, bad_share=0.02)
        command = [sys.executable, "-c", MEASURE, str(path), str(tiny_base), str(tmp_path / f"{rows}")]
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=500)
        peaks.append(int(found.stdout) * 1024)
    assert peaks[1] - peaks[0] < 24_000 * 1_500
