"""The whole run as a user starts it: a real process, a real Prefect server, a real MLflow store."""

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from mlflow.tracking import MlflowClient

from flows.reevaluate_flow import reevaluate_flow
from training_core.folders import seal_digest

pytestmark = pytest.mark.slow

NAME = "tiny-model"
SETTINGS = {
    "registered_model_name": NAME,
    "max_steps": 24,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "gradient_checkpointing": "false",
    "learning_rate": "1e-3",
    "max_eval_rows": 6,
    "eval_max_new_tokens": 12,
}


@dataclass(frozen=True)
class Job:
    """A command line of `sft-flow run` and its output folder."""

    command: list[str]
    output_dir: Path

    def start(self) -> subprocess.Popen[str]:
        # An empty address counts as unset, and servers on this machine are not reached through a proxy.
        environment = os.environ | {
            "PREFECT_API_URL": "",
            "MLFLOW_TRACKING_URI": "",
            "http_proxy": "http://127.0.0.1:9",
        }
        return subprocess.Popen(
            self.command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def finish(self) -> str:
        process = self.start()
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 0, output
        return output

    @property
    def adapter(self) -> Path:
        (adapter,) = self.output_dir.glob("*/adapter")
        return adapter

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.output_dir}/mlflow.db")

    def flow_run_names(self) -> dict[str, str]:
        """The name of the latest run of each flow."""
        query = "SELECT flow.name, flow_run.name FROM flow_run JOIN flow ON flow.id = flow_id ORDER BY flow_run.created"
        with contextlib.closing(sqlite3.connect(self.output_dir / "prefect" / "prefect.db")) as database:
            return dict(database.execute(query).fetchall())

    def curve(self) -> list[tuple[int, str, float]]:
        (run,) = self.client.search_runs([self.client.get_experiment_by_name("sft-flow").experiment_id])
        return [
            (point.step, name, point.value)
            for name in ("loss", "eval_loss", "learning_rate")
            for point in self.client.get_metric_history(run.info.run_id, name)
        ]


def job(tiny_base: Path, rows: Path, output_dir: Path) -> Job:
    flags = [part for name, value in SETTINGS.items() for part in (f"--{name}", str(value))]
    paths = ["--model_name", str(tiny_base), "--dataset_path", str(rows), "--output_dir", str(output_dir)]
    return Job([sys.executable, "-c", "from flows.cli import main; main()", "run", *paths, *flags], output_dir)


@pytest.fixture(scope="module")
def finished(tiny_base: Path, sample_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, str]:
    """A run that was not interrupted, and its output."""
    quiet = job(tiny_base, sample_rows, tmp_path_factory.mktemp("quiet") / "runs")
    return quiet, quiet.finish()


def test_run_registers_a_candidate_described_by_its_scores(finished: tuple[Job, str]) -> None:
    client = finished[0].client
    (version,) = client.search_model_versions(f"name = '{NAME}'")
    assert client.get_model_version_by_alias(NAME, "candidate").version == version.version
    assert re.match(r"Decision accuracy \d+\.\d% over 6 held-out rows", version.description)
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["lora_r"] == "16"
    assert {"candidate/accuracy", "base/accuracy", "lookup_table/accuracy"} <= run.data.metrics.keys()
    (evaluation,) = client.list_artifacts(run.info.run_id, "evaluation")
    artifacts = {
        Path(file.path).name
        for folder in (evaluation.path, "data")
        for file in client.list_artifacts(run.info.run_id, folder)
    }
    assert {"confusion.png", "loss_curve.png", "rejected.jsonl"} <= artifacts


def test_run_prints_tables_and_row_accounting(finished: tuple[Job, str]) -> None:
    output = finished[1]
    assert "Every line accounted for" in output
    for name in ("base", "candidate", "majority", "lookup table"):
        assert re.search(rf"^ *{name} ", output, flags=re.MULTILINE)
    assert "sft-flow ui" in output


def test_run_prints_the_path_of_its_report_page(finished: tuple[Job, str]) -> None:
    job, output = finished
    (path,) = re.findall(r"^Report   (.+)$", output, flags=re.MULTILINE)
    assert Path(path).parent == job.adapter.parent and f"{NAME} version 1: " in Path(path).read_text()


def test_run_and_its_training_have_readable_names(finished: tuple[Job, str]) -> None:
    job, output = finished
    name = f"{NAME} {job.adapter.parent.name[:6]}"  # the folder is named after the fingerprint
    assert job.flow_run_names() == {"sft-flow": name, "train-flow": name}
    assert f"Beginning flow run '{NAME}' for flow 'sft-flow'" in output
    assert f"Task run 'fine-tune {job.adapter.parent.name[:6]}'" in output
    (version,) = job.client.search_model_versions(f"name = '{NAME}'")
    assert re.fullmatch(rf"{NAME} rows\.jsonl \d{{4}}-\d\d-\d\d", job.client.get_run(version.run_id).info.run_name)


def test_run_seals_its_checkpoints(finished: tuple[Job, str]) -> None:
    checkpoints = list(finished[0].output_dir.glob("*/checkpoints/checkpoint-*"))
    assert len(checkpoints) == 3
    assert all(seal_digest(checkpoint) for checkpoint in checkpoints)


def test_candidate_loads_by_alias_and_generates_the_same_tokens(finished: tuple[Job, str]) -> None:
    (sample,) = finished[0].output_dir.glob("*/evaluation-*/parity_sample.json")
    tokens = json.loads(sample.read_text())["answers"]
    check = [sys.executable, "-m", "tasks.check_served", f"models:/{NAME}@candidate"]
    store = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{finished[0].output_dir}/mlflow.db"}
    assert subprocess.run([*check, str(sample)], env=store, timeout=300, check=False).returncode == 0

    forged = sample.with_name("forged.json")
    forged.write_text(json.dumps(json.loads(sample.read_text()) | {"answers": [[1], *tokens[1:]]}))
    assert subprocess.run([*check, str(forged)], env=store, timeout=300, check=False).returncode == 1


def test_run_killed_and_restarted_gives_the_same_weights(
    finished: tuple[Job, str], tiny_base: Path, sample_rows: Path, tmp_path: Path
) -> None:
    quiet, disturbed = finished[0], job(tiny_base, sample_rows, tmp_path / "runs")
    process = disturbed.start()
    server = _wait_for_server(process)
    _wait_for(lambda: any(disturbed.output_dir.glob("*/checkpoints/checkpoint-*/manifest.json")), "a checkpoint")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(disturbed.output_dir.glob("*/adapter")), "the run ended before it could be killed"
    _wait_for(lambda: not _answers(server), "the server of the killed process to stop")

    output = disturbed.finish()
    assert disturbed.flow_run_names() == quiet.flow_run_names()
    assert re.search(r"Training starts from checkpoint \d+", output)
    weights = "adapter_model.safetensors"
    assert (disturbed.adapter / weights).read_bytes() == (quiet.adapter / weights).read_bytes()
    assert disturbed.curve() == quiet.curve()
    assert len(disturbed.client.search_model_versions(f"name = '{NAME}'")) == 1

    with contextlib.closing(sqlite3.connect(disturbed.output_dir / "mlflow.db")) as database, database:
        database.execute("DELETE FROM params WHERE key LIKE 'decision.%'")  # as if killed before the decision
    again = disturbed.finish()
    assert "Rows reused" in again
    assert "Adapter reused" in again
    assert "Evaluation reused" in again
    assert disturbed.curve() == quiet.curve()
    assert len(disturbed.client.search_model_versions(f"name = '{NAME}'")) == 1


def test_run_with_a_registered_result_ends_at_once(finished: tuple[Job, str]) -> None:
    before = sorted(finished[0].output_dir.iterdir())
    output = finished[0].finish()
    assert f"Nothing new: {NAME} version 1 was trained with the same rows and settings" in output
    assert f"models:/{NAME}/1 in sqlite:///" in output
    assert "NothingNew" in output and "fine-tune" not in output
    assert sorted(finished[0].output_dir.iterdir()) == before


def test_reevaluation_scores_again_and_trains_nothing(
    finished: tuple[Job, str], tiny_base: Path, sample_rows: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    job, places = finished[0], {"model_name": str(tiny_base), "dataset_path": str(sample_rows)}
    (known,) = job.client.search_model_versions(f"name = '{NAME}'")
    before, curve = job.client.get_metric_history(known.run_id, "candidate/accuracy"), job.curve()
    outcome = reevaluate_flow(
        output_dir=str(job.output_dir), registered_model_name=NAME, max_eval_rows=5, eval_max_new_tokens=12, **places
    )
    (version,) = job.client.search_model_versions(f"name = '{NAME}'")
    assert version.description == known.description, "a later evaluation does not overwrite it"
    newest = max(name for name in version.tags if name.startswith("sft_flow.decision."))
    assert newest not in known.tags and outcome.version.verdict.split(": ", 1)[1] in version.tags[newest]
    after = job.client.get_metric_history(known.run_id, "candidate/accuracy")
    assert len(after) == len(before) + 1
    assert job.curve() == curve
    artifacts = httpx.post(f"{prefect_api}/artifacts/filter", json={}).json()
    assert f"version {version.version}" in {found["key"]: found for found in artifacts}["sft-flow-report"]["data"]


def _wait_for_server(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    for line in process.stdout:
        if found := re.search(r"View at (http://[^/]+)/", line):
            return found[1]
    raise AssertionError("the run ended before it printed the URL of its server")


def _answers(server: str) -> bool:
    try:
        return httpx.get(f"{server}/api/health", timeout=2).is_success
    except httpx.TransportError:
        return False


def _wait_for(holds: Callable[[], bool], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)
