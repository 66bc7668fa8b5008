"""Automations on a real Prefect server: new rows start runs; failures and promotions send notifications."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

import pytest
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.events import emit_event
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed, Failed

from deployments.deploy import deploy
from deployments.topology import ROWS_UPDATED, resume_crashed_runs
from tasks.announcements import PROMOTED

pytestmark = pytest.mark.slow

BLOCK = "custom-webhook/team"

Found = TypeVar("Found")


@contextmanager
def inbox() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The URL of a server that stores the messages posted to it, and these messages."""
    messages: list[dict[str, str]] = []

    class Inbox(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Keep the tests' output short."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Inbox)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", messages
    finally:
        server.shutdown()


@pytest.fixture(scope="module")
def messages(prefect_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, str]]]:
    """The messages sent through the notification block of a server on which everything is deployed."""
    store = tmp_path_factory.mktemp("store").as_uri()
    with inbox() as (url, received), temporary_settings({PREFECT_API_URL: prefect_address}):
        text = {"subject": "{{subject}}", "body": "{{body}}"}
        CustomWebhookNotificationBlock(name="team", url=url, json_data=text).save("team")
        with get_client(sync_client=True) as client:
            assert ("created", "automation") in {found[:2] for found in deploy(client, "process", store, BLOCK)}
            assert [found for found in deploy(client, "process", store, BLOCK) if found[0] != "unchanged"] == []
        yield received


@pytest.fixture
def client(messages: list[dict[str, str]], prefect_api: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as found:
        yield found


def wait_for(find: Callable[[], Found | None], what: str, seconds: float = 60) -> Found:
    deadline = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.2)
    return found


def runs_of(client: SyncPrefectClient, deployment: str) -> list[FlowRun]:
    found = client.read_deployment_by_name(deployment)
    return client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[found.id])))


def started_by(client: SyncPrefectClient, payload: dict[str, str]) -> FlowRun:
    """The run that an event starts which is emitted by Prefect's own command."""
    known = {run.id for run in runs_of(client, "sft-flow/qwen")}
    command = [sys.executable, "-m", "prefect", "event", "emit", ROWS_UPDATED, "--resource-id", "rows"]
    given = ["--payload", json.dumps(payload)] if payload else []
    environment = os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value())}
    subprocess.run([*command, *given], env=environment, check=True, timeout=120, capture_output=True)
    return wait_for(
        lambda: next((run for run in runs_of(client, "sft-flow/qwen") if run.id not in known), None), "a run"
    )


def test_event_of_new_rows_starts_the_deployed_run(client: SyncPrefectClient) -> None:
    deployed = client.read_deployment_by_name("sft-flow/qwen").parameters
    assert started_by(client, {}).parameters == deployed


def test_event_with_a_path_starts_a_run_on_it(client: SyncPrefectClient) -> None:
    deployed = client.read_deployment_by_name("sft-flow/qwen").parameters
    place = 's3://rows/a "quoted" name.jsonl'
    assert started_by(client, {"dataset_path": place}).parameters == deployed | {"dataset_path": place}


def test_notification_of_a_failure_names_run_reason_and_url(
    client: SyncPrefectClient, messages: list[dict[str, str]]
) -> None:
    run = client.create_flow_run_from_deployment(client.read_deployment_by_name("sft-flow/demo").id)
    client.set_flow_run_state(run.id, Failed(message="the rows are not fit"), force=True)
    (message,) = wait_for(lambda: [m for m in messages if "failed" in m["subject"]], "a message")
    assert message["subject"] == f"sft-flow: {run.name} failed"
    assert "the rows are not fit" in message["body"]
    assert str(run.id) in message["body"] and "http" in message["body"]


def test_notification_of_a_promotion_has_its_verdict(client: SyncPrefectClient, messages: list[dict[str, str]]) -> None:
    emit_event(
        PROMOTED, resource={"prefect.resource.id": "sft-flow.model.m.3"}, payload={"verdict": "m version 3 wins"}
    )
    (message,) = wait_for(lambda: [m for m in messages if "champion" in m["subject"]], "a message")
    assert message["body"] == "m version 3 wins"


def test_crashed_run_that_still_sends_heartbeats_is_resumed(client: SyncPrefectClient) -> None:
    """Its process may be alive: the server was away, and called it silent before its next heartbeat arrived."""
    deployment = client.read_deployment_by_name("sft-flow/demo").id
    automation = resume_crashed_runs([deployment])
    automation.name, automation.trigger.within = "resume soon", timedelta(seconds=10)
    automation_id = client.create_automation(automation)
    run = client.create_flow_run_from_deployment(deployment)
    client.set_flow_run_state(run.id, Crashed(message="no heartbeat"), force=True)
    resource = {"prefect.resource.id": f"prefect.flow-run.{run.id}"}
    related = [{"prefect.resource.id": f"prefect.deployment.{deployment}", "prefect.resource.role": "deployment"}]
    time.sleep(1)
    emit_event("prefect.flow-run.heartbeat", resource=resource, related=related)
    wait_for(lambda: client.read_flow_run(run.id).state_name == "AwaitingRetry", "the run to be resumed", seconds=40)
    client.delete_automation(automation_id)
