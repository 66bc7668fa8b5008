"""What runs are called in Prefect, with and without deployments, and after they are resumed. On a real server."""

import re
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from prefect import Flow, Task, flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.flow_engine import run_flow
from prefect.logging import disable_run_logger
from prefect.runtime import flow_run
from prefect.states import AwaitingRetry, Pending

from flows.janitor_flow import janitor_flow
from flows.parameters import takes_settings
from flows.reevaluate_flow import reevaluate_flow
from flows.sft_flow import sft_flow
from flows.train_flow import train_flow
from tasks import run_names
from tasks.refs import DatasetRef, FolderRef
from tasks.run_names import name_by_fingerprint, name_by_model, name_by_time, name_by_training
from tasks.tracking import tracking_run_name
from training_core.config import RunConfig
from training_core.training.fingerprint import run_fingerprint

FINGERPRINT = "092a45" + 58 * "0"


def started(a_flow: Flow[..., Any], parameters: dict[str, Any]) -> FlowRun:
    """A run of the flow as a deployment creates it: with a name by Prefect, and only the parameters given."""
    with get_client(sync_client=True) as client:
        return client.create_flow_run(a_flow, parameters=parameters, state=Pending())


def executed(a_flow: Flow[..., Any], run: FlowRun) -> str:
    """The name of the run after a worker's process has executed it."""
    with get_client(sync_client=True) as client:
        run_flow(a_flow, flow_run=client.read_flow_run(run.id), return_type="state")
        return client.read_flow_run(run.id).name


@pytest.fixture
def names_while_running() -> list[str]:
    return []


@pytest.fixture
def named_by_model(names_while_running: list[str]) -> Flow[..., Any]:
    """A flow that is named like ``sft_flow``, and learns its fingerprint while it runs."""

    @flow(flow_run_name=name_by_model)
    @takes_settings
    def named(config: RunConfig) -> None:
        names_while_running.append(str(flow_run.name))
        name_by_fingerprint(config, FINGERPRINT)

    return named


@pytest.mark.parametrize(
    ("a_flow", "namer"),
    [
        (sft_flow, name_by_model),
        (reevaluate_flow, name_by_model),
        (train_flow, name_by_training),
        (janitor_flow, name_by_time),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_flows_have_a_name_for_their_runs(a_flow: Flow[..., Any], namer: Callable[[], str]) -> None:
    assert a_flow.flow_run_name is namer


def test_tasks_have_a_name_for_their_runs(all_tasks: list[Task[..., object]]) -> None:
    without = {task.name for task in all_tasks if not task.task_run_name}
    assert without == set()


def test_tracking_run_is_named_after_model_rows_and_date() -> None:
    config = RunConfig(registered_model_name="m", dataset_path="s3://bucket/rows/samples.jsonl")
    before = datetime.now(UTC).date()
    assert tracking_run_name(config) in {f"m samples.jsonl {day}" for day in (before, datetime.now(UTC).date())}


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_flow_run_is_named_after_model_then_fingerprint(
    named_by_model: Flow[..., Any], names_while_running: list[str]
) -> None:
    run = started(named_by_model, {"registered_model_name": "sft-flow-demo"})
    assert executed(named_by_model, run) == "sft-flow-demo 092a45"
    assert names_while_running == ["sft-flow-demo"]


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_flow_run_without_deployment_has_the_same_name(named_by_model: Flow[..., Any]) -> None:
    run = named_by_model(registered_model_name="sft-flow-demo", return_state=True).state_details.flow_run_id
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(run).name == "sft-flow-demo 092a45"


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_flow_run_uses_the_default_model_name(named_by_model: Flow[..., Any]) -> None:
    assert executed(named_by_model, started(named_by_model, {})) == f"{RunConfig().registered_model_name} 092a45"


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_flow_run_keeps_its_name_when_resumed(named_by_model: Flow[..., Any], names_while_running: list[str]) -> None:
    run = started(named_by_model, {"registered_model_name": "sft-flow-demo"})
    first = executed(named_by_model, run)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, AwaitingRetry(), force=True)
    assert executed(named_by_model, run) == first
    assert names_while_running == ["sft-flow-demo", first]


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_training_run_is_named_from_its_parameters() -> None:
    @flow(flow_run_name=name_by_training)
    def training(config: RunConfig, dataset: DatasetRef) -> None:
        """As ``train_flow`` is called."""

    config, dataset = RunConfig(), DatasetRef(FolderRef("rows", None, ""), "d" * 64, 1, 1, "b" * 64)
    fingerprint = run_fingerprint(config, dataset.digest, dataset.base_digest)
    run = started(training, {"config": asdict(config), "dataset": asdict(dataset)})
    assert executed(training, run) == f"{config.registered_model_name} {fingerprint[:6]}"


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_janitor_run_is_named_after_its_time() -> None:
    named = flow(name="janitor-flow", flow_run_name=name_by_time)(lambda: None)
    run = started(named, {})
    name = executed(named, run)
    assert re.fullmatch(r"janitor \d{4}-\d\d-\d\d \d\d:\d\d", name)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, AwaitingRetry(), force=True)
    assert executed(named, run) == name


def test_flow_run_without_a_server_keeps_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(**_: object) -> None:
        raise httpx.ConnectError("connection refused")

    monkeypatch.setattr(run_names, "get_client", unreachable)
    with disable_run_logger():
        name_by_fingerprint(RunConfig(), FINGERPRINT)
