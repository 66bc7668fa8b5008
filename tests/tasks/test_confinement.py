"""A run of a deployment reads, writes and imports what its worker's environment allows; a command may do anything."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.flows import load_flow_from_entrypoint

from deployments.topology import deployments
from flows import predict_flow
from tasks.confinement import require_allowed
from tasks.refs import DatasetRef, FolderRef
from training_core.config import RunConfig, SettingsError, read_settings

ROOTS = "SFT_FLOW_ALLOWED_ROOTS"
PLACES = {"dataset_path", "eval_path", "output_dir", "cache_dir", "rows", "output"}
HERE = {"rows": "data/rows.jsonl", "output": "answers.jsonl"}


def as_run(**fields: Any) -> Any:
    """What Prefect tells the code of a run about that run."""
    return FlowRunContext.model_construct(flow_run=FlowRun(flow_id=uuid4(), name="a run", **fields))


@pytest.fixture
def deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder of a worker that runs a deployment."""
    folder = tmp_path / "worker"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "rows.jsonl").touch()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "rows.jsonl").touch()
    (tmp_path / "worker-of-another").mkdir()
    (tmp_path / "worker-of-another" / "rows.jsonl").touch()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("SFT_FLOW_STORE", raising=False)
    with as_run(deployment_id=uuid4()):
        yield folder


def problems(dataset: DatasetRef | None = None, **settings: object) -> list[str]:
    try:
        require_allowed(read_settings({"model_name": "samples/tiny_qwen", **settings}), dataset)
    except SettingsError as error:
        return error.problems
    return []


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dataset_path": "data/rows.jsonl", "eval_path": "data/*.jsonl"},
        {"dataset_path": "data", "output_dir": "runs/new", "cache_dir": "cache"},
        {"model_name": "Qwen/Qwen3-0.6B"},
    ],
)
def test_worker_folder_is_allowed(deployed: Path, settings: dict[str, object]) -> None:
    assert problems(**settings) == []


@pytest.mark.parametrize("name", ["dataset_path", "eval_path", "output_dir", "cache_dir"])
@pytest.mark.parametrize(
    "path",
    [
        *("/etc/passwd", "file:///etc/passwd", "file:/etc/passwd", "local:///etc/passwd", "../outside/rows.jsonl"),
        *("data/../../outside", "~/rows", "../worker-of-another/rows.jsonl", "../outside/*.jsonl"),
        *("s3://bucket/rows.jsonl", "http://169.254.169.254/latest", "memory://rows", "data:text/plain;base64,e30="),
        *("zip://rows.jsonl::file:///etc/a.zip", "simplecache::file:///etc/passwd", "github://a:b@main/rows.jsonl"),
    ],
)
def test_path_outside_the_roots_is_refused(deployed: Path, name: str, path: str) -> None:
    (problem,) = problems(**{name: path})
    assert problem.startswith(f"{name}: expected a path in the worker's folder, the artifact store or {ROOTS}")


@pytest.mark.parametrize("path", ["data/link.jsonl", "data", "data/*.jsonl", "linked", "linked/rows.jsonl"])
def test_link_that_leads_outside_is_refused(deployed: Path, path: str) -> None:
    (deployed / "data" / "link.jsonl").symlink_to(deployed.parent / "outside" / "rows.jsonl")
    (deployed / "linked").symlink_to(deployed.parent / "outside")
    assert len(problems(dataset_path=path)) == 1


def test_listed_roots_and_the_store_are_allowed(deployed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ROOTS, f"s3://bucket/rows/, {deployed.parent / 'outside'}, https://host/rows")
    monkeypatch.setenv("SFT_FLOW_STORE", "s3://sft-flow/store")
    for path in ("s3://sft-flow/store/samples.jsonl", "../outside", "s3://bucket/rows/a.jsonl", "https://HOST/rows/a"):
        assert problems(output_dir="runs", dataset_path=path) == [], path


@pytest.mark.parametrize(
    "path",
    [
        *("s3://bucket/rows-of-another/a.jsonl", "s3://bucket", "s3://bucket/rows/../other/a", "S3://other/rows/a"),
        *(
            "https://host/rows/%2e%2e/secret",
            "https://host.evil.example/rows/a",
            "https://user@host/rows/a",
            "s3:///rows",
        ),
        *("http://host/rows/a", "zip://a::s3://bucket/rows/a.zip", "https://host/rows?to=../../x"),
    ],
)
def test_address_beside_a_root_is_refused(deployed: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv(ROOTS, "s3://bucket/rows,https://host/rows")
    assert len(problems(output_dir=path)) == 1


def test_base_model_outside_the_roots_is_refused(deployed: Path) -> None:
    (problem,) = problems(model_name=str(deployed.parent / "outside"))
    assert problem.startswith("model_name: ")


def test_dataset_outside_the_roots_is_refused(deployed: Path) -> None:
    """`train-flow` gets its rows as the address of a folder, which comes over the API as well."""
    for url, count in (("s3://elsewhere/folders/1", 1), ((deployed / "store").as_uri(), 0)):
        dataset = DatasetRef(FolderRef("runs/x", url, "0" * 64), "0" * 64, 1, 1, "0" * 64)
        assert len(problems(dataset, dataset_path="/only/on/the/cpu/worker")) == count


@pytest.mark.parametrize("setting", ["label_audit", "answer_audit"])
def test_code_that_is_not_named_is_not_imported(deployed: Path, monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    (deployed / "rules.py").write_text("from pathlib import Path\nPath('imported').touch()\ndef rule(row): ...\n")
    monkeypatch.syspath_prepend(str(deployed))
    (problem,) = problems(**{setting: "rules:rule"})
    assert problem.startswith(f"{setting}: 'rules:rule' is not in SFT_FLOW_ALLOWED_FUNCTIONS; ")
    monkeypatch.setenv("SFT_FLOW_ALLOWED_FUNCTIONS", "other:rule, rules:rule")
    assert problems(**{setting: "rules:rule"}) == []
    assert not (deployed / "imported").exists()


@pytest.mark.parametrize("job_variables", [{"env": {ROOTS: "/"}}, {f"env.{ROOTS}": "/"}])
def test_run_that_changes_its_environment_is_refused(deployed: Path, job_variables: dict[str, Any]) -> None:
    """Prefect merges job variables of a run, which come over the API, into the environment of the pool."""
    with as_run(deployment_id=uuid4(), job_variables=job_variables):
        (problem,) = problems()
    assert problem.startswith("job_variables: a run may not change its environment")
    with as_run(deployment_id=uuid4(), job_variables={"shm_size": "8g"}):
        assert problems() == []


def test_command_line_is_free(deployed: Path) -> None:
    with as_run():
        require_allowed(RunConfig(dataset_path="/etc/passwd", output_dir="/elsewhere", label_audit="os:getcwd"))


@pytest.mark.parametrize("entrypoint", sorted({str(one.entrypoint) for one in deployments("rows.jsonl")}))
@pytest.mark.parametrize("path", ["/etc/passwd", "../outside/rows.jsonl", "file:///etc/passwd", "s3://elsewhere/x"])
def test_every_deployed_flow_refuses_places_outside(
    deployed: Path, monkeypatch: pytest.MonkeyPatch, entrypoint: str, path: str
) -> None:
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__RUN_COUNT", "1")  # else a server is asked
    monkeypatch.setattr("tasks.recovery.get_client", MagicMock())
    monkeypatch.setattr(predict_flow, "config_of_uri", lambda *_: (RunConfig(), "1"))
    flow = load_flow_from_entrypoint(entrypoint)
    taken = set(flow.parameters.properties)
    if taken == {"config", "dataset"}:
        folder = FolderRef("runs/x", None, "0" * 64)
        dataset = DatasetRef(folder, "0" * 64, 1, 1, "0" * 64)
        calls = {"output_dir": {"config": RunConfig(output_dir=path), "dataset": dataset}}
    else:
        usual = {name: HERE[name] for name in HERE.keys() & taken}
        calls = {name: usual | {name: path} for name in PLACES & taken}
    assert calls or not taken, "name its places, so that they are asked for here"
    for name, parameters in calls.items():
        with pytest.raises(SettingsError, match=rf"{name}: expected a path in the worker's folder"):
            flow.fn(**parameters)


def test_rows_of_predict_flow_are_asked_for_links(deployed: Path) -> None:
    (deployed / "data" / "link.jsonl").symlink_to(deployed.parent / "outside" / "rows.jsonl")
    with pytest.raises(SettingsError, match="rows: expected a path"):
        require_allowed(RunConfig(output_dir="runs"), rows="data", output="answers.jsonl")
    require_allowed(RunConfig(output_dir="runs"), rows="data/rows.jsonl", output="answers.jsonl")
