"""A killed job goes on and ends with the same bytes; a finished one is known; nothing is taken from another job."""

import io
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from row_samples import Record, record, records, with_policy, write

from training_core.config import SettingsError
from training_core.prediction import cases, job
from training_core.prediction.answering import Answerer, Progress
from training_core.prediction.cases import find_cases
from training_core.prediction.job import Job, output_problems, read_summary, write_answers
from training_core.prediction.lines import Counts

NewJob = Callable[..., Job]

POLICIES = [f"POLICY {name}\n\n" + f"Rule {name} of many words to share. " * 12 + "End." for name in "abc"]
PART = 16


def ignore(_: Progress) -> None: ...


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """75 cases of three policies in turn, two of them bad, in a window of three parts and one of two."""
    made = [with_policy(row, POLICIES[number % 3]) for number, row in enumerate(records(73))]
    bad: list[Record | bytes] = [b"{", record() | {"input": None}]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cases, "_WINDOW_LINES", 45)
        yield write(
            tmp_path_factory.mktemp("rows") / "rows.jsonl", [*made[:7], bad[0], *made[7:60], bad[1], *made[60:]]
        )


@pytest.fixture(scope="module")
def unbroken(answerer: Answerer, rows: str) -> bytes:
    """The answers of a job that nobody killed."""
    output = Path(rows).parent / "unbroken-answers.jsonl"
    write_answers(Job(find_cases(rows), answerer, "models:/name/1", "a", "b", f"{output}.parts", str(output)), ignore)
    return output.read_bytes()


def lines_of(done: Job) -> list[dict[str, object]]:
    return [json.loads(line) for line in Path(str(done.output)).read_bytes().splitlines()]


def kill_after(parts: int, killed: Job) -> None:
    """Answer in a process that is killed when it has written so many parts in this attempt."""

    left = iter(range(parts - 1, -1, -1))

    def report(_: Progress) -> None:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    stream = None if killed.output else io.BytesIO()
    _ = killed.answerer.loaded  # so that each process has it
    process = multiprocessing.get_context("fork").Process(target=write_answers, args=(killed, report, stream))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


def test_every_line_has_its_line_of_output(new_job: NewJob, rows: str) -> None:
    counts = write_answers(new_job(rows), ignore)
    found = lines_of(new_job(rows))
    assert [(line["file"], line["line"]) for line in found] == [(rows, number) for number in range(1, 76)]
    assert [line["line"] for line in found if line["error"]] == [8, 62]
    assert (counts.lines, counts.bad, len(counts.bad_rows)) == (75, 2, 2)
    assert {tuple(line) for line in found} == {
        ("file", "line", "decision", "usable", "confidence", "hand_over", "answer", "why_not", "error")
    }
    assert not list(Path(str(new_job(rows).output)).parent.glob("*answers*part*"))


@pytest.mark.parametrize("kills", [[1, 1, 2], [3], [5]])
def test_killed_answers_end_with_the_same_bytes(new_job: NewJob, rows: str, unbroken: bytes, kills: list[int]) -> None:
    """Killed in a window, between two, and when all but the output was there."""
    killed = new_job(rows)
    for parts in kills:
        kill_after(parts, killed)
        assert not Path(str(killed.output)).exists()
    attempts: list[int] = []
    write_answers(killed, lambda progress: attempts.append(progress.computed))
    assert Path(str(killed.output)).read_bytes() == unbroken
    assert len(attempts) == 5 - sum(kills), "what was answered is not answered again"


def test_killed_stream_begins_again_and_computes_only_the_rest(new_job: NewJob, rows: str, unbroken: bytes) -> None:
    kill_after(4, new_job(rows, None))
    stream, computed = io.BytesIO(), list[int]()
    write_answers(new_job(rows, None), lambda progress: computed.append(progress.computed), stream)
    assert stream.getvalue() == unbroken
    assert computed == [14]


@pytest.mark.parametrize("change", ["input", "version", "limit"])
def test_parts_of_another_job_are_not_used(
    new_job: NewJob, rows: str, change: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    kill_after(2, new_job(rows))
    other = new_job(rows, adapter="another" if change == "version" else "a")
    if change == "input":
        other = new_job(write(tmp_path / "rows.jsonl", records(75)))
    if change == "limit":
        settings = replace(other.answerer.config, eval_max_new_tokens=2)
        other = replace(other, answerer=replace(other.answerer, config=settings))
    computed: list[int] = []
    with caplog.at_level("INFO", logger="training_core"):
        write_answers(other, lambda progress: computed.append(progress.computed))
    assert computed[-1] == 75
    named = {"input": "input", "version": "adapter", "limit": "eval_max_new_tokens"}[change]
    (line,) = [text for text in caplog.messages if "asked anew" in text]
    assert line.endswith(f"other {named}")


def test_finished_answers_are_known_until_something_changes(new_job: NewJob, rows: str) -> None:
    done = new_job(rows)
    assert read_summary(done) is None
    counts = write_answers(done, ignore)
    assert read_summary(done) == counts
    assert read_summary(new_job(rows, adapter="another")) is None
    output = Path(str(done.output))
    output.write_bytes(output.read_bytes()[:-1])
    assert read_summary(done) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "\xff"])
def test_damaged_summaries_and_keys_are_as_none(new_job: NewJob, rows: str, content: str) -> None:
    done = new_job(rows)
    counts = write_answers(done, ignore)
    Path(done.summary).write_bytes(content.encode("latin-1"))
    Path(done.parts).mkdir()
    (Path(done.parts) / "key.json").write_bytes(content.encode("latin-1"))
    assert read_summary(done) is None
    assert write_answers(done, ignore) == counts == read_summary(done)


def test_parts_left_by_a_killed_job_are_deleted_later(
    new_job: NewJob, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed between the summary and the end."""
    done = new_job(rows)
    with monkeypatch.context() as patch:
        patch.setattr(job, "delete", lambda _: None)
        write_answers(done, ignore)
    assert Path(done.parts).is_dir()
    assert read_summary(done) and not Path(done.parts).exists()


def test_answers_at_a_url_are_the_same_and_resumed(new_job: NewJob, rows: str, unbroken: bytes) -> None:
    there = new_job(rows, "memory://predictions/deep/answers.jsonl")

    def stop(progress: Progress) -> None:
        if progress.computed == 2 * PART:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_answers(there, stop)
    computed: list[int] = []
    write_answers(there, lambda progress: computed.append(progress.computed))
    files = fsspec.filesystem("memory")
    assert computed[-1] == 75 - 2 * PART
    assert files.cat("/predictions/deep/answers.jsonl") == unbroken
    assert sorted(files.find("/predictions")) == [
        f"/predictions/deep/answers.jsonl{end}" for end in ("", ".summary.json")
    ]
    assert read_summary(there)


def test_answers_are_written_by_one_process_at_a_time(
    new_job: NewJob, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "_SECONDS_TO_WAIT", 0)

    def answer_too(_: Progress) -> None:
        write_answers(new_job(rows), ignore)

    with pytest.raises(SettingsError, match="another process is writing these answers"):
        write_answers(new_job(rows), answer_too)


@pytest.mark.parametrize(
    ("rows", "output", "problem"),
    [
        ("rows", "answers.txt", "a name that ends in"),
        ("rows", "missing/answers.jsonl", "a folder that exists"),
        ("rows", "rows/answers.jsonl", "would be read as rows"),
        ("*.jsonl", "answers.jsonl", "would be read as rows"),
        ("rows.jsonl", "rows.jsonl", "would be read as rows"),
        ("rows", "nowhere://x/answers.jsonl", "cannot write to"),
        ("rows", "answers.jsonl", None),
        ("s3://bucket/rows", "answers.jsonl", None),
        ("rows", "file://answers.jsonl", None),
        ("rows", "memory://x/answers.jsonl", "URL of a store to write to"),
        ("rows", "github://x.jsonl", "URL of a store to write to"),
        ("rows", "http://host/answers.jsonl", "URL of a store to write to"),
        ("rows", "simplecache::s3://bucket/answers.jsonl", "URL of a store to write to"),
    ],
)
def test_outputs_that_cannot_be_written_are_problems(
    rows: str, output: str, problem: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows").mkdir()
    found = output_problems(rows, output)
    assert (len(found) == 1 and problem in found[0]) if problem else not found


def test_counts_keep_the_first_of_many() -> None:
    counts = Counts()
    line = {
        "file": "f",
        "line": 1,
        "decision": "Eligible",
        "usable": True,
        "hand_over": False,
        "why_not": None,
        "error": None,
    }
    bad = line | {"decision": None, "usable": False, "hand_over": True, "error": "wrong"}
    counts.add([json.dumps(one).encode() for one in [line, *[bad] * 30, line | {"decision": "Escalate"}, line]])
    assert (counts.lines, counts.bad, counts.usable, len(counts.bad_rows)) == (33, 30, 3, 20)
    assert counts.by_decision() == [("Eligible", 2), ("Escalate", 1)]
    assert counts.summary == "33 lines: 3 of 3 answers are usable, 30 bad rows; 30 for a person to decide"
