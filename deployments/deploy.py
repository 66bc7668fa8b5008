"""Creates or updates everything on the Prefect server: ``python -m deployments.deploy``; idempotent."""

import os
import sys
import tempfile
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import fsspec
import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments.runner import RunnerDeployment
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from deployments.job_templates import PoolKind
from deployments.record import AUTOMATION, DEPLOYMENT, SCHEDULE, Item, read_record, remove, write_record
from deployments.topology import Pool, automations, deployments, pools
from flows.cli import DEMO_BAD_SHARE, DEMO_ROWS, DEMO_SEED
from flows.terminal import complain, print_line
from samples.cases import write_rows
from tasks.artifact_store import VARIABLE as STORE
from tasks.artifact_store import store_problems
from tasks.servers import server_problems
from training_core.rows.files import client_errors_as_os_errors

POOL_KIND, NOTIFY = "SFT_FLOW_POOL_KIND", "SFT_FLOW_NOTIFY"

Outcome = Literal["created", "updated", "unchanged", "removed"]

_AUTOMATION_FIELDS = ("name", "description", "enabled", "trigger", "actions")


def main() -> None:
    """Deploy the topology; prints for each object whether it was created, updated, removed or is unchanged."""
    kind, store = os.environ.get(POOL_KIND, "process"), os.environ.get(STORE, "")
    kinds = typing.get_args(PoolKind)
    problems = [
        *([] if PREFECT_API_URL.value() else ["PREFECT_API_URL is not set; set it to the API of your Prefect server"]),
        *server_problems(),
        *store_problems(needed=True),
        *([] if kind in kinds else [f"{POOL_KIND}: expected one of {', '.join(kinds)}, got {kind!r}"]),
    ]
    if problems:
        complain("\n".join(["Nothing was deployed:", *(f"  - {problem}" for problem in problems)]))
        sys.exit(2)
    try:
        _deploy_and_print(typing.cast(PoolKind, kind), store)
    except (ValueError, OSError, ImportError, httpx.HTTPError) as error:  # wrong input, the store, the server
        complain(f"Deployed only in part: {error}")
        sys.exit(2)


def _deploy_and_print(kind: PoolKind, store: str) -> None:
    with get_client(sync_client=True) as client:
        for outcome, what, name in deploy(client, kind, store, os.environ.get(NOTIFY)):
            print_line(f"{outcome:10} {what:11} {name}")


def deploy(
    client: SyncPrefectClient, kind: PoolKind, store: str, notify: str | None = None
) -> Iterator[tuple[Outcome, str, str]]:
    """Create or update pools, demo rows, deployments and automations, and remove those deployments, schedules and
    automations that an earlier call created and that are no longer declared; yields outcome, kind and name of each.

    ``notify`` is the name of a notification block, such as ``slack-webhook/team``. Raises ``ValueError`` when there is
    no such block, or when a pool of another kind has the name of one of ours.
    """
    block = _block_id(client, notify) if notify else None  # first, so that nothing is deployed when it is missing
    for pool in pools(kind):
        yield _apply_pool(client, pool), "pool", pool.name
        for queue, priority in pool.queues.items():
            yield _apply_queue(client, pool.name, queue, priority), "queue", f"{pool.name}/{queue}"
    demo_rows = f"{store.rstrip('/')}/samples.jsonl"
    yield _apply_rows(demo_rows), "rows", demo_rows
    ids: dict[str, UUID] = {}
    declared: set[Item] = set()
    for deployment in deployments(demo_rows):
        outcome, ids[deployment.full_name] = _apply_deployment(client, deployment)
        declared |= {(DEPLOYMENT, deployment.full_name), *_schedules(deployment)}
        yield outcome, DEPLOYMENT, deployment.full_name
    for automation in automations(ids, block):
        declared.add((AUTOMATION, automation.name))
        yield _apply_automation(client, automation), AUTOMATION, automation.name
    yield from _remove_undeclared(client, declared)


def _schedules(deployment: RunnerDeployment) -> set[Item]:
    return {(SCHEDULE, f"{deployment.full_name} {schedule.slug}") for schedule in deployment.schedules or []}


def _remove_undeclared(client: SyncPrefectClient, declared: set[Item]) -> Iterator[tuple[Outcome, str, str]]:
    for kind, name in sorted(read_record(client) - declared):
        if remove(client, (kind, name)):
            yield "removed", kind, name
    write_record(client, declared)


def _block_id(client: SyncPrefectClient, name: str) -> UUID:
    kind, _, block = name.partition("/")
    try:
        return client.read_block_document_by_name(block, kind).id
    except ObjectNotFound as error:
        raise ValueError(f"{NOTIFY}: found no block {name!r}; create it in the Prefect UI, under Blocks") from error


def _apply_pool(client: SyncPrefectClient, pool: Pool) -> Outcome:
    try:
        found = client.read_work_pool(pool.name)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=pool.name, type=pool.kind, base_job_template=pool.template))
        return "created"
    if found.type != pool.kind:
        raise ValueError(f"pool {pool.name}: expected kind {pool.kind}, found {found.type}; delete or rename the pool")
    if found.base_job_template == pool.template:
        return "unchanged"
    client.update_work_pool(pool.name, WorkPoolUpdate(base_job_template=pool.template))
    return "updated"


def _apply_queue(client: SyncPrefectClient, pool: str, queue: str, priority: int) -> Outcome:
    try:
        found = client.read_work_queue_by_name(queue, pool)
    except ObjectNotFound:
        client.create_work_queue(queue, work_pool_name=pool, priority=priority)
        return "created"
    if found.priority == priority:
        return "unchanged"
    client.update_work_queue(found.id, priority=priority)
    return "updated"


@client_errors_as_os_errors()
def _apply_rows(url: str) -> Outcome:
    """Upload generated rows for the demo to where every worker can read them."""
    filesystem, path = fsspec.core.url_to_fs(url)
    if filesystem.exists(path):
        return "unchanged"
    filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "samples.jsonl"
        write_rows(rows, DEMO_ROWS, DEMO_SEED, DEMO_BAD_SHARE)
        filesystem.put_file(str(rows), path)
    return "created"


def _apply_deployment(client: SyncPrefectClient, deployment: RunnerDeployment) -> tuple[Outcome, UUID]:
    try:
        found = client.read_deployment_by_name(deployment.full_name)
    except ObjectNotFound:
        return "created", _apply(client, deployment)
    _keep_switches(deployment, found)
    own = {schedule.slug for schedule in deployment.schedules or []}
    found.schedules = [
        schedule for schedule in found.schedules if schedule.slug in own
    ]  # others are not ours to change
    if _compared_fields(deployment, _schema(deployment)) == _compared_fields(found, found.parameter_openapi_schema):
        return "unchanged", found.id
    return "updated", _apply(client, deployment)


def _apply(client: SyncPrefectClient, deployment: RunnerDeployment) -> UUID:
    applied = deployment.apply()
    assert isinstance(applied, UUID)  # a coroutine only where the caller is one
    # The client drops the part of the schema that makes the server reject unknown parameters.
    schema = {"parameter_openapi_schema": _schema(deployment)}
    client.request("PATCH", "/deployments/{id}", path_params={"id": applied}, json=schema)
    return applied


def _schema(deployment: RunnerDeployment) -> dict[str, Any]:
    parts = deployment._parameter_openapi_schema.model_dump() | {"additionalProperties": False}
    return {name: part for name, part in parts.items() if part not in ([], {})}  # the server drops empty parts


def _keep_switches(deployment: RunnerDeployment, found: DeploymentResponse) -> None:
    """A schedule that was switched on or off in the UI stays so."""
    switches = {schedule.slug: schedule.active for schedule in found.schedules}
    for schedule in deployment.schedules or []:
        schedule.active = switches.get(schedule.slug, schedule.active)


def _compared_fields(
    deployment: RunnerDeployment | DeploymentResponse, schema: dict[str, Any] | None
) -> dict[str, Any]:
    return {
        "entrypoint": deployment.entrypoint,
        "description": deployment.description,
        "parameters": deployment.parameters,
        "schema": schema,
        "pool": deployment.work_pool_name,
        "queue": deployment.work_queue_name,
        "schedules": [
            (schedule.slug, schedule.active, schedule.schedule.model_dump(include={"cron", "timezone"}))
            for schedule in deployment.schedules or []
            if schedule.schedule
        ],
    }


def _apply_automation(client: SyncPrefectClient, automation: AutomationCore) -> Outcome:
    found = next(iter(client.read_automations_by_name(automation.name)), None)
    if found is None:
        client.create_automation(automation)
        return "created"
    # Whether it is switched on is decided in the UI.
    automation = automation.model_copy(update={"enabled": found.enabled})
    wanted, present = (a.model_dump(include=set(_AUTOMATION_FIELDS)) for a in (automation, found))
    if wanted == present:
        return "unchanged"
    client.update_automation(found.id, automation)
    return "updated"


if __name__ == "__main__":
    main()
