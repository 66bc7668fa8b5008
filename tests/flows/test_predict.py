"""`sft-flow predict` and `predict-flow`: a registered version answers files, streams and folders of cases."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from prefect.logging import disable_run_logger
from row_samples import Record, record, records, with_policy, write
from tiny_models import tiny_model, write_base

from flows import predict_cli, registry_cli
from tasks import prediction, tracking
from tasks.check_served import as_input
from tasks.refs import DatasetRef, EvalReport, FolderRef, RunRef, TrainedRef
from tasks.registry import find_or_create_version
from tasks.versions import CHAMPION, point_alias
from training_core.config import RunConfig
from training_core.dataset.answer_schema import schema_of_answers
from training_core.escaping import in_markdown, shown
from training_core.folders import seal_digest
from training_core.model_setup import digest_base_model, load_model_and_tokenizer, load_tokenizer
from training_core.prediction.lines import Counts
from training_core.training.adapter import write_adapter

NAME = "answering"
URI = f"models:/{NAME}@champion"
POLICIES = [f"POLICY {name}\n\n" + f"Rule {name} of many words to share. " * 12 + "End." for name in "abc"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def output_dir(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs with a registered champion, a random model whose answers have three tokens."""
    folder, words = tmp_path_factory.mktemp("runs"), len(load_tokenizer(tiny_base))
    torch.manual_seed(0)
    write_base(tiny_model("qwen3", vocab_size=words, initializer_range=0.2), tiny_base, folder / "base")
    places = {"model_name": str(folder / "base"), "output_dir": str(folder), "registered_model_name": NAME}
    config = RunConfig(**places, eval_max_new_tokens=3, eval_batch_size=4, quantisation="none", constrain="none")
    made = load_model_and_tokenizer(config)
    write_adapter(made.model, made.tokenizer, config, np.array([7], np.uint64), folder / "run" / "adapter")
    _register(config, folder / "run")
    return folder


def _register(config: RunConfig, folder: Path, letter: str = "f") -> None:
    for name in ("report.json", "rejected.jsonl"):
        (folder / name).touch()
    base = digest_base_model(Path(config.model_name))
    run_id = tracking.open_tracking_run(
        config, letter * 64, DatasetRef(FolderRef("", None, ""), "d", 1, 1, base), folder
    )
    adapter = FolderRef(str(folder / "adapter"), None, str(seal_digest(folder / "adapter")))
    run = RunRef(letter * 64, str(folder), base, run_id)
    trained = TrainedRef(run, adapter, EvalReport(adapter, 0, {}, {}, None))
    point_alias(config, CHAMPION, find_or_create_version(config, trained, "Decision accuracy 40%."))


@pytest.fixture(autouse=True)
def _here(output_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def cases() -> list[Record]:
    return [with_policy(row, POLICIES[number % 3]) for number, row in enumerate(records(10))]


def call(output_dir: Path, rows: str, output: str, *more: str) -> None:
    registry_cli.main("predict", [URI, rows, "--output", output, "--output_dir", str(output_dir), *more])


def lines_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.read_bytes().splitlines()]


def test_predicted_answers_are_those_of_the_registered_model(
    output_dir: Path, cases: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(output_dir, write(tmp_path / "cases.jsonl", cases), str(tmp_path / "answers.jsonl"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{output_dir}/mlflow.db")
    served = mlflow.pyfunc.load_model(URI)
    answers = served.predict(pd.DataFrame([as_input(case) for case in cases]))["answer"]
    assert [line["answer"] for line in lines_of(tmp_path / "answers.jsonl")] == list(answers)
    assert len(set(answers)) > 3


def test_predicted_answers_held_to_the_schema_are_those_registered(
    output_dir: Path, cases: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the default of ``constrain``."""
    places = {"model_name": str(output_dir / "base"), "output_dir": str(output_dir), "registered_model_name": "held"}
    config = RunConfig(**places, eval_max_new_tokens=60, eval_batch_size=4, quantisation="none")
    made, schema = load_model_and_tokenizer(config), schema_of_answers([case["output"] for case in cases])
    write_adapter(made.model, made.tokenizer, config, np.array([7], np.uint64), tmp_path / "adapter", schema)
    _register(config, tmp_path, "e")
    rows, output = write(tmp_path / "cases.jsonl", cases), tmp_path / "answers.jsonl"
    command = ["models:/held@champion", rows, "--output", str(output), "--output_dir", str(output_dir)]
    registry_cli.main("predict", command)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{output_dir}/mlflow.db")
    served = mlflow.pyfunc.load_model("models:/held@champion")
    found = served.predict(pd.DataFrame([as_input(case) for case in cases]))
    lines = lines_of(output)
    assert [line["answer"] for line in lines] == list(found["answer"]) and all(line["usable"] for line in lines)
    assert [line["confidence"] for line in lines] == pytest.approx(list(found["confidence"]), abs=1e-5)


def test_predict_lists_bad_rows_and_counts(
    output_dir: Path, cases: list[Record], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = write(tmp_path / "cases.jsonl", [*cases[:3], b"{", record() | {"input": None}])
    call(output_dir, rows, str(tmp_path / "answers.jsonl"))
    out, said = capfd.readouterr()
    assert f"Bad row   {rows}:4: line: invalid JSON at byte " in said
    assert f"Bad row   {rows}:5: input: expected an object, got null or nothing; see 'Your own rows'" in said
    assert "5 lines: 0 of 3 answers are usable, 2 bad rows" in said
    assert "Unusable  " in said and "cut off after 3 tokens, the limit of this version" in said
    assert not out and f"Answers of models:/{NAME}/1 in {tmp_path}/answers.jsonl" in said
    summary = json.loads((tmp_path / "answers.jsonl.summary.json").read_text())
    assert (summary["version"], summary["counts"]["lines"]) == (f"models:/{NAME}/1", 5)


def test_predict_does_nothing_twice_unless_again(
    output_dir: Path, cases: list[Record], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows, output = write(tmp_path / "cases.jsonl", cases), tmp_path / "answers.jsonl"
    call(output_dir, rows, str(output))
    first = output.stat().st_mtime_ns
    call(output_dir, rows, str(output))
    assert output.stat().st_mtime_ns == first
    assert "Nothing to do" in capfd.readouterr().err
    call(output_dir, rows, str(output), "--again")
    assert output.stat().st_mtime_ns > first


def test_predict_reads_and_writes_streams(
    output_dir: Path, cases: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, stdout = write(tmp_path / "cases.jsonl", cases), io.BytesIO()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(Path(rows).read_bytes())))
    monkeypatch.setattr(predict_cli.sys, "stdout", SimpleNamespace(buffer=stdout))
    call(output_dir, "-", "-")
    call(output_dir, rows, str(tmp_path / "answers.jsonl"))
    found = list(map(json.loads, stdout.getvalue().splitlines()))
    assert [line["file"] for line in found] == ["-"] * len(cases)
    assert [line | {"file": rows} for line in found] == lines_of(tmp_path / "answers.jsonl")
    assert not list((output_dir / "predictions").iterdir())


def test_predict_answers_a_folder_and_names_what_it_does_not_read(
    output_dir: Path, cases: list[Record], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows").mkdir()
    for place in (0, 5):
        write(tmp_path / "rows" / f"{place}.jsonl", cases[place : place + 5])
    (tmp_path / "rows" / "notes.txt").touch()
    call(output_dir, str(tmp_path / "rows"), str(tmp_path / "answers.jsonl"))
    found = lines_of(tmp_path / "answers.jsonl")
    assert [(Path(line["file"]).name, line["line"]) for line in found] == [
        (f"{file}.jsonl", line) for file in (0, 5) for line in range(1, 6)
    ]
    assert f"Not read: {tmp_path}/rows/notes.txt: expected a name" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("models:/nobody@champion", "cases.jsonl", "answers.jsonl"), "NAME: "),
        ((f"models:/{NAME}@nobody", "cases.jsonl", "answers.jsonl"), f"URI: {NAME} has no version or alias nobody"),
        ((URI, "missing.jsonl", "answers.jsonl"), "ROWS: expected a file, folder, glob or URL of rows"),
        ((URI, "half.jsonl.gz", "answers.jsonl"), "half.jsonl.gz: "),
        ((URI, "cases.jsonl", "answers.txt"), "output: expected a name that ends in .jsonl"),
        ((URI, "cases.jsonl", "cases.jsonl"), "output: 'cases.jsonl' would be read as rows"),
    ],
)
def test_predict_ends_with_one_line_and_two(
    output_dir: Path,
    arguments: tuple[str, str, str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "cases.jsonl", records(1))
    (tmp_path / "half.jsonl.gz").write_bytes(b"\x1f\x8b\x08")
    uri, rows, output = arguments
    with pytest.raises(SystemExit) as ended:
        registry_cli.main("predict", [uri, rows, "--output", output, "--output_dir", str(output_dir)])
    said = capfd.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and said.startswith(f"sft-flow predict: {reason}")


def test_predict_task_publishes_counts_and_where_the_answers_are(
    output_dir: Path, cases: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task's body, without a server, which stand-ins take the place of."""
    config = RunConfig(output_dir=str(output_dir), registered_model_name=NAME)
    rows, output = write(tmp_path / "cases.jsonl", [*cases, b"{"]), str(tmp_path / "answers.jsonl")
    artifacts: list[tuple[str, dict[str, Any]]] = []
    shown: list[float] = []
    monkeypatch.setattr(prediction, "POLL_SECONDS", 0)
    monkeypatch.setattr(prediction, "end_when_replaced", lambda *attempt: None)
    monkeypatch.setattr(prediction, "create_progress_artifact", lambda share, **_: shown.append(share) or uuid4())
    monkeypatch.setattr(prediction, "create_markdown_artifact", lambda text, **named: artifacts.append((text, named)))
    with disable_run_logger():
        for _ in range(2):
            found = prediction.answer_rows.fn(config, "1", prediction.Asked(rows, output), again=False)
    assert found == "11 lines: 0 of 10 answers are usable, 1 bad rows; 11 for a person to decide" and shown == [100]
    (text, named), again = artifacts
    assert again == (text, named) and named["description"] == found
    assert f"Answers of `models:/{NAME}/1`: {in_markdown(output)}" in text
    assert f"    {rows}:11: line: invalid JSON" in text


@pytest.mark.parametrize("text", ["\x1b[2Jrow", "a `code`\n# heading", "s3://key:secret@bucket/x"])
def test_predict_shows_names_and_rows_as_text(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    """In the terminal and in the artifact."""
    job: Any = SimpleNamespace(version="models:/a/1", output=text)
    counts = Counts(lines=1, bad=1, bad_rows=[text])
    predict_cli._print(job, counts)
    said = capfd.readouterr().err
    assert said == shown(said) and said.count(shown(text)) == 2
    found = prediction.describe(job, counts)
    assert found == shown(found) and f"`models:/a/1`: {in_markdown(text)}" in found
    assert f"    {shown(' '.join(text.split()))}" in found.splitlines()
