"""The report page of a decision is in the run's folder and in MLflow, and what is in a row stays text."""

import json
import re
import shutil
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from prefect.logging import disable_run_logger
from sample_report import report

from samples.cases import generate_rows, policy_text
from tasks import reporting, tracking
from tasks.ledger import GATE, Entry, VersionId
from tasks.lineage import code_commit
from tasks.refs import DatasetRef, EvalReport, FolderRef, ModelVersionRef, RunRef, TrainedRef
from tasks.reporting import publish_missing_report, publish_report
from tasks.tracking import fetch_report_page, report_name
from tasks.versions import ADAPTER_TAG, decide_once
from training_core.config import RunConfig
from training_core.dataset.row_sample import sample_rows
from training_core.evaluation.evidence import EvidenceRow, write_evidence_rows
from training_core.evaluation.scores import Prediction, score
from training_core.evaluation.text_scores import AnswerJudge
from training_core.folders import seal, seal_digest

NASTY = "<script>alert(1)</script>"
MODELS = ("base", "candidate", "lookup table")


def predicted(records: list[dict[str, Any]]) -> list[Prediction]:
    """A wrong answer to every row."""
    found = []
    for line, record in enumerate(records):
        judged = AnswerJudge().judge(record, text := json.dumps(record["output"] | {"decision": "Escalate"}))
        place = ("rows.jsonl", line, record["input"]["issue_type"], record["output"]["decision"])
        found.append(Prediction(*place, "Escalate", judged.parsed, judged.usable, text, judged.text_scores))
    return found


@pytest.fixture
def run(config: RunConfig) -> Path:
    folder = Path(config.output_dir).resolve() / config.registered_model_name
    folder.mkdir()
    return folder


@pytest.fixture
def evaluation(run: Path, config: RunConfig) -> FolderRef:
    """An evaluation on a few rows, one of which has HTML in its case."""
    folder, records = run / "evaluation-1", list(generate_rows(6, seed=4))
    folder.mkdir()
    records[0]["input"]["note"] = NASTY
    cases = [{k: v for k, v in record["input"].items() if k != "policy_document"} for record in records]
    rows = [EvidenceRow(i, "d1", records[i] | {"input": case}) for i, case in enumerate(cases)]
    write_evidence_rows(folder, rows, {"d1": policy_text("returns")})
    lines = "".join(json.dumps(asdict(found)) + "\n" for found in predicted(records))
    for name in MODELS:
        (folder / f"predictions_{name.replace(' ', '_')}.jsonl").write_text(lines)
    scores = asdict(score(predicted(records), config))
    (folder / "scores.json").write_text(json.dumps(dict.fromkeys(MODELS, scores)))
    (folder / "comparison.json").write_text('{"left_out": 0}')
    return FolderRef(str(folder), None, seal(folder))


@pytest.fixture
def rows(run: Path) -> DatasetRef:
    folder = run / "rows"
    folder.mkdir()
    report().save(folder / "report.json")
    (folder / "rejected.jsonl").touch()
    return DatasetRef(FolderRef(str(folder), None, seal(folder)), "d" * 64, 5, 4, "b" * 64)


@pytest.fixture
def finished(
    config: RunConfig, run: Path, evaluation: FolderRef, rows: DatasetRef, fingerprint: str, adapter_ref: FolderRef
) -> TrainedRef:
    run_id = tracking.open_tracking_run(config, fingerprint, rows, Path(rows.folder.path))
    scored = EvalReport(evaluation, 6, dict.fromkeys(MODELS, 0.0), dict.fromkeys(MODELS, 0.0), None)
    return TrainedRef(RunRef(fingerprint, str(run), "b" * 64, run_id), adapter_ref, scored)


@pytest.fixture
def adapter_ref() -> FolderRef:
    return FolderRef("adapter", None, "a" * 64)


@pytest.fixture
def artifacts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts of the Prefect artifacts."""
    texts: list[str] = []
    monkeypatch.setattr(reporting, "create_markdown_artifact", lambda text, **_: texts.append(text))
    return texts


def decided(
    config: RunConfig,
    trained: TrainedRef,
    outcome: str = "undecided",
    number: str = "1",
    champion: VersionId | None = None,
) -> Entry:
    own = VersionId(number, trained.run.fingerprint)
    digests = {"rows": "r" * 64, "row_sample": sample_rows([2**40]), "evidence": trained.report.folder.digest}
    entry = Entry(GATE, outcome, own, champion, champion, "too few rows", **digests)
    written = decide_once(config, lambda _: entry)
    assert written
    return written


def publish(config: RunConfig, rows: DatasetRef, trained: TrainedRef) -> Path:
    version = ModelVersionRef(config.registered_model_name, "1", champion=False, verdict="undecided")
    return Path(publish_report.fn(config, rows, trained, version))


def test_report_page_is_in_the_run_folder_and_in_mlflow(
    config: RunConfig, rows: DatasetRef, finished: TrainedRef, artifacts: list[str], tmp_path: Path
) -> None:
    entry = decided(config, finished)
    file = publish(config, rows, finished)
    assert file.parent == Path(finished.run.path) and str(file) in artifacts[0]
    assert seal_digest(Path(finished.report.folder.path)) == finished.report.folder.digest
    name, fetched = report_name(entry.evidence, entry.time), tmp_path / "fetched.html"
    assert fetch_report_page(config, finished.run.tracking_run_id, name, fetched)
    assert fetched.read_bytes() == file.read_bytes()


def test_report_page_has_lineage_counts_and_commands(
    config: RunConfig, rows: DatasetRef, finished: TrainedRef, artifacts: list[str]
) -> None:
    decided(config, finished)
    page = publish(config, rows, finished).read_text()
    name, run = config.registered_model_name, finished.run
    assert f"{name} version 1: undecided" in page and "too few rows" in page
    for text in (run.fingerprint, run.tracking_run_id, finished.adapter.digest, rows.digest, "r" * 64, "b" * 64):
        assert text in page
    assert "candidates judged: 1, promoted: 0" in page and "Every line accounted for" in page
    assert f"sft-flow promote {name} 1" in page and f"sft-flow reject {name} 1" in page
    assert "sft-flow rollback" not in page
    assert re.search(r"<dt>trained</dt><dd>\d{4}-\d\d-\d\d \d\d:\d\d", page) and code_commit() in page


def test_code_commit_is_that_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "training_core" / "__init__.py"
    package.parent.mkdir()
    package.touch()
    monkeypatch.setattr("training_core.__file__", str(package))
    assert code_commit() == "not a git checkout"
    identity = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    assert re.fullmatch("[0-9a-f]{40}", code_commit())
    package.write_text("changed = True")
    assert re.fullmatch("[0-9a-f]{40}-dirty", code_commit())


def test_report_page_shows_changes_since_the_champion(
    config: RunConfig, rows: DatasetRef, finished: TrainedRef, artifacts: list[str]
) -> None:
    earlier, name = replace(config, learning_rate=0.0625), config.registered_model_name
    fewer = replace(rows, digest="e" * 64, train_rows=3)
    run_id = tracking.open_tracking_run(earlier, f"champion of {name}", fewer, Path(rows.folder.path))
    client, tags = tracking.connect(config), {tracking.FINGERPRINT_TAG: f"champion of {name}"}
    client.create_registered_model(name)
    client.create_model_version(name, "nowhere", run_id, tags)
    champion = VersionId("1", f"champion of {name}")
    became = Entry(GATE, "becomes champion", champion, None, champion, evidence="c" * 64)
    decide_once(config, lambda _: became)
    old, now = policy_text("returns").replace("30 days", "14 days"), policy_text("returns")
    assert old != now
    client.log_text(run_id, json.dumps({"d0": old, "d2": "GONE\n1. Nothing."}), f"evaluation/{'c' * 12}/policies.json")
    decided(config, finished, number="2", champion=champion)
    page = publish(config, rows, finished).read_text()
    changes = page[page.index('id="changes"') :]
    assert f"<td>learning_rate</td><td>0.0625</td><td>{config.learning_rate}</td>" in changes
    assert f"<td>3 rows, digest {'e' * 12}</td><td>5 rows, digest {'d' * 12}</td>" in changes
    title = now.partition("\n")[0]
    cells = f"<td>policy of held-out rows: {title}</td><td>(.*?)</td><td>(.*?)</td>"
    ((before, after),) = re.findall(cells, changes, re.DOTALL)
    assert "14 days" in before and "30 days" in after and title not in before
    assert "<td>policy of held-out rows: GONE</td>" in changes
    assert changes[: changes.index("</table>")].count("<tr>") == 5, "heading, setting, rows and two policies"
    assert "withdraws version 1, the champion, and returns to no champion" in page


def test_report_page_keeps_html_in_a_case_as_text(
    config: RunConfig, rows: DatasetRef, finished: TrainedRef, artifacts: list[str]
) -> None:
    decided(config, finished)
    page = publish(config, rows, finished).read_text()
    assert NASTY not in page and "&lt;script&gt;alert(1)" in page


def test_report_page_of_an_earlier_decision_is_kept(
    config: RunConfig, rows: DatasetRef, finished: TrainedRef, artifacts: list[str]
) -> None:
    decided(config, finished)
    first = publish(config, rows, finished)
    before = first.read_bytes()
    assert publish(config, rows, finished) == first and first.read_bytes() == before, "a retry writes the same page"
    decided(config, finished, "stays candidate")
    second = publish(config, rows, finished)
    assert second != first and first.read_bytes() == before
    assert len(tracking.connect(config).list_artifacts(finished.run.tracking_run_id, "report")) == 2


def test_report_page_of_a_training_on_another_machine_is_in_the_output_folder(
    config: RunConfig, rows: DatasetRef, finished: TrainedRef, artifacts: list[str]
) -> None:
    decided(config, finished)
    elsewhere = replace(finished, run=replace(finished.run, path="/not/on/this/machine/0123456789ab"))
    file = publish(config, rows, elsewhere)
    assert file.parent == Path(config.output_dir).resolve() / "0123456789ab" and file.is_file()


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> list[Entry]:
    entries: list[Entry] = []
    monkeypatch.setattr(reporting, "announce", lambda _, entry: entries.append(entry))
    return entries


def publish_missing(config: RunConfig, rows: DatasetRef) -> None:
    version = ModelVersionRef(config.registered_model_name, "1", champion=True, verdict="becomes champion: better")
    with disable_run_logger():
        publish_missing_report.fn(config, rows, version)


def test_report_of_a_killed_run_is_made_up_for(
    config: RunConfig, rows: DatasetRef, finished: TrainedRef, artifacts: list[str], announced: list[Entry], run: Path
) -> None:
    """Killed between verdict and report; the folder of the run may be gone as well."""
    client, name = tracking.connect(config), config.registered_model_name
    tags = {tracking.FINGERPRINT_TAG: finished.run.fingerprint, ADAPTER_TAG: finished.adapter.digest}
    client.create_registered_model(name)
    client.create_model_version(name, "nowhere", finished.run.tracking_run_id, tags)
    publish_missing(config, rows)
    assert not artifacts, "nothing was decided"
    tracking.log_results(config, finished.run.tracking_run_id, finished.report)
    shutil.rmtree(finished.report.folder.path)
    own = VersionId("1", finished.run.fingerprint)
    digest = finished.report.folder.digest
    became = Entry(GATE, "becomes champion", own, None, own, row_sample=sample_rows([2**40]), evidence=digest)
    entry = decide_once(config, lambda _: became)
    assert entry
    for _ in range(2):
        publish_missing(config, rows)
        assert announced == [entry]
        assert len(artifacts) == 1 and "becomes champion" in artifacts[0]
    page = report_name(entry.evidence, entry.time)
    assert fetch_report_page(config, finished.run.tracking_run_id, page, run / "fetched.html")
    assert finished.adapter.digest in (run / "fetched.html").read_text()
