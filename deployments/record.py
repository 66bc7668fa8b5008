"""What ``deploy`` created on a server, kept there in a variable: so it can remove what is no longer declared, and only
that."""

import json

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import VariableCreate, VariableUpdate
from prefect.exceptions import ObjectNotFound

VARIABLE = "sft_flow_deployed"

Item = tuple[str, str]  # its kind and its name

DEPLOYMENT, SCHEDULE, AUTOMATION = "deployment", "schedule", "automation"


def read_record(client: SyncPrefectClient) -> set[Item]:
    """Everything that earlier deployments created; nothing on a server where none was recorded."""
    found = client.read_variable_by_name(VARIABLE)
    return {(kind, name) for kind, name in json.loads(str(found.value))} if found else set()


def write_record(client: SyncPrefectClient, items: set[Item]) -> None:
    """Replace the record."""
    value, found = json.dumps(sorted(items)), client.read_variable_by_name(VARIABLE)
    if found is None:
        client.create_variable(VariableCreate(name=VARIABLE, value=value))
    elif found.value != value:
        client.update_variable(VariableUpdate(name=VARIABLE, value=value))


def remove(client: SyncPrefectClient, item: Item) -> bool:
    """Remove an item of the record; whether it was there. A deployment's runs stay."""
    kind, name = item
    try:
        return {DEPLOYMENT: _remove_deployment, SCHEDULE: _remove_schedule, AUTOMATION: _remove_automation}[kind](
            client, name
        )
    except ObjectNotFound:  # somebody removed it by hand
        return False


def _remove_deployment(client: SyncPrefectClient, name: str) -> bool:
    client.delete_deployment(client.read_deployment_by_name(name).id)
    return True


def _remove_schedule(client: SyncPrefectClient, name: str) -> bool:
    deployment_name, _, slug = name.rpartition(" ")
    deployment = client.read_deployment_by_name(deployment_name)
    found = [schedule for schedule in deployment.schedules if schedule.slug == slug]
    for schedule in found:
        client.delete_deployment_schedule(deployment.id, schedule.id)
    return bool(found)


def _remove_automation(client: SyncPrefectClient, name: str) -> bool:
    found = client.read_automations_by_name(name)
    for automation in found:
        client.delete_automation(automation.id)
    return bool(found)
