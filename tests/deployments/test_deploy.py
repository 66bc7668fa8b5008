"""What `deploy` creates, on a real Prefect server with its services and without a worker."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.schedules import Cron
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.types.entrypoint import EntrypointType

from deployments import topology
from deployments.deploy import deploy, main
from flows.local_servers import prefect_server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deploy")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[SyncPrefectClient]:
    with (
        prefect_server(folder / "prefect", preferred_port=0, for_workers=True) as server,
        temporary_settings({PREFECT_API_URL: f"{server.wait()}/api"}),
        get_client(sync_client=True) as client,
    ):
        yield client


def deploy_all(client: SyncPrefectClient, folder: Path) -> dict[str, str]:
    """The outcome for each object, by its name."""
    return {name: outcome for outcome, _, name in deploy(client, "process", folder.as_uri())}


def touched(outcomes: dict[str, str]) -> set[str]:
    return {name for name, outcome in outcomes.items() if outcome != "unchanged"}


@pytest.fixture(scope="module")
def outcomes(client: SyncPrefectClient, folder: Path) -> dict[str, str]:
    """Of the first deployment."""
    return deploy_all(client, folder)


@pytest.fixture
def demo(client: SyncPrefectClient, outcomes: dict[str, str]) -> DeploymentResponse:
    return client.read_deployment_by_name("sft-flow/demo")


def test_deploy_creates_everything_once(outcomes: dict[str, str], client: SyncPrefectClient, folder: Path) -> None:
    assert {name: outcome for name, outcome in outcomes.items() if outcome != "created"} == {
        "gpu/default": "unchanged",  # the server creates it with the pool
        "cpu/default": "unchanged",
    }
    environment = os.environ | {"PREFECT_API_URL": str(client.api_url), "SFT_FLOW_STORE": folder.as_uri()}
    command = [sys.executable, "-m", "deployments.deploy"]  # a new process, where sets have another order
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=True)
    lines = found.stdout.strip().split("\n")
    assert len(lines) == len(outcomes)
    assert {line.split()[0] for line in lines} == {"unchanged"}


def test_deploy_resets_manual_changes(outcomes: dict[str, str], client: SyncPrefectClient, folder: Path) -> None:
    template = client.read_work_pool("cpu").base_job_template
    template["variables"]["properties"]["stream_output"]["default"] = True
    client.update_work_pool("cpu", WorkPoolUpdate(base_job_template=template))
    client.update_work_queue(client.read_work_queue_by_name("urgent", "gpu").id, priority=9)
    janitor = client.read_deployment_by_name("janitor-flow/often")
    client.update_deployment_schedule(janitor.id, janitor.schedules[0].id, schedule=CronSchedule(cron="0 0 1 1 *"))
    (automation,) = client.read_automations_by_name("sft-flow: resume crashed runs")
    by_hand = automation.model_dump(exclude={"id", "owner_resource"}) | {"description": "by hand"}
    client.update_automation(automation.id, AutomationCore(**by_hand))

    again = deploy_all(client, folder)

    reset = {"cpu", "gpu/urgent", "janitor-flow/often", automation.name}
    assert touched(again) == reset
    schedules = client.read_deployment_by_name("janitor-flow/often").schedules
    assert [schedule.schedule.cron for schedule in schedules] == ["*/5 * * * *"]
    assert touched(deploy_all(client, folder)) == set()


def test_deploy_keeps_switches_set_in_the_ui(outcomes: dict[str, str], client: SyncPrefectClient, folder: Path) -> None:
    weekly = client.read_deployment_by_name("sft-flow/qwen")
    assert [schedule.active for schedule in weekly.schedules] == [False]
    client.update_deployment_schedule(weekly.id, weekly.schedules[0].id, active=True)
    (automation,) = client.read_automations_by_name("sft-flow: train on new rows")
    client.pause_automation(automation.id)

    assert touched(deploy_all(client, folder)) == set()

    assert [schedule.active for schedule in client.read_deployment_by_name("sft-flow/qwen").schedules] == [True]
    assert not client.read_automations_by_name(automation.name)[0].enabled


@pytest.fixture
def one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A topology with one more deployment, schedule and automation."""

    def more_deployments(demo_rows: str) -> list[Any]:
        flow = topology.janitor_flow
        extra = flow.to_deployment("extra", work_pool_name="cpu", entrypoint_type=EntrypointType.MODULE_PATH)
        declared = topology.deployments(demo_rows)
        hourly = Cron("0 * * * *", timezone="UTC", active=False, slug="hourly")
        (demo,) = [one for one in declared if one.full_name == "sft-flow/demo"]
        place = declared.index(demo)
        declared[place] = topology._deployment(topology.sft_flow, "demo", "cpu", dict(demo.parameters), hourly)
        return [*declared, extra]

    def more_automations(ids: dict[str, Any], notify: Any) -> list[AutomationCore]:
        extra = topology.train_on_new_rows(ids["sft-flow/demo"]).model_copy(update={"name": "sft-flow: extra"})
        return [*topology.automations(ids, notify), extra]

    monkeypatch.setattr("deployments.deploy.deployments", more_deployments)
    monkeypatch.setattr("deployments.deploy.automations", more_automations)


def test_deploy_removes_what_it_created_and_nothing_else(
    outcomes: dict[str, str],
    client: SyncPrefectClient,
    folder: Path,
    one_more: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deploy_all(client, folder)
    demo = client.read_deployment_by_name("sft-flow/demo")
    client.create_deployment_schedules(demo.id, [(CronSchedule(cron="5 5 * * *"), False)])
    (automation,) = client.read_automations_by_name("sft-flow: extra")
    by_hand = automation.model_dump(exclude={"id", "owner_resource"}) | {"name": "sft-flow: by hand"}
    client.create_automation(AutomationCore(**by_hand))

    monkeypatch.undo()
    again = deploy_all(client, folder)

    removed = {"janitor-flow/extra", "sft-flow/demo hourly", "sft-flow: extra"}
    assert {name for name, outcome in again.items() if outcome == "removed"} == removed
    schedules = client.read_deployment_by_name("sft-flow/demo").schedules
    assert [schedule.schedule.cron for schedule in schedules] == ["5 5 * * *"], "one made in the UI stays"
    assert client.read_automations_by_name("sft-flow: by hand")
    assert not client.read_automations_by_name("sft-flow: extra")
    with pytest.raises(ObjectNotFound):
        client.read_deployment_by_name("janitor-flow/extra")
    assert touched(deploy_all(client, folder)) == set()


def test_deployment_run_with_one_parameter_keeps_the_others(
    demo: DeploymentResponse, client: SyncPrefectClient
) -> None:
    assert "learning_rate" in demo.parameters
    run = client.create_flow_run_from_deployment(demo.id, parameters={"lora_r": 8})
    assert run.parameters == demo.parameters | {"lora_r": 8}


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"lora_r": 0}, "minimum of 1"),
        ({"val_split": 1}, "maximum of 1"),
        ({"optim": "sgd"}, "is not one of"),
        ({"entity_fields": "order_id"}, "is not of type 'array'"),
        ({"train_on": "gpu"}, "train_on"),
        ({"lora_rr": 8}, "lora_rr"),
        ({"config": {"lora_r": 8}}, "config"),
    ],
)
def test_deployment_rejects_invalid_parameters(
    demo: DeploymentResponse, client: SyncPrefectClient, parameters: dict[str, Any], reason: str
) -> None:
    with pytest.raises(PrefectHTTPStatusError, match=reason) as rejected:
        client.create_flow_run_from_deployment(demo.id, parameters=parameters)
    assert rejected.value.response.status_code == 409


def test_schedule_creates_runs(outcomes: dict[str, str], client: SyncPrefectClient) -> None:
    """With SQLAlchemy 2.1 no runs are created."""
    janitor = client.read_deployment_by_name("janitor-flow/often").id
    of_janitor = DeploymentFilter(id=DeploymentFilterId(any_=[janitor]))
    deadline = time.monotonic() + 90
    while len(runs := client.read_flow_runs(deployment_filter=of_janitor)) < 2:
        assert time.monotonic() < deadline, f"{len(runs)} runs were scheduled"
        time.sleep(0.5)
    assert all(run.auto_scheduled and run.expected_start_time.minute % 5 == 0 for run in runs)


def test_wrong_environment_deploys_nothing_and_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"SFT_FLOW_POOL_KIND": "cloud", "SFT_FLOW_STORE": "", "PREFECT_API_URL": "prefect:4200"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("Nothing was deployed:")
    for name in ("SFT_FLOW_POOL_KIND", "SFT_FLOW_STORE", "PREFECT_API_URL"):
        assert name in told
