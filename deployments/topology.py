"""What runs where: pools, deployments, schedules and automations, as plain data that ``deploy`` applies."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.schemas.objects import StateType
from prefect.deployments.runner import RunnerDeployment
from prefect.events.actions import ActionTypes, ChangeFlowRunState, RunDeployment, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.schedules import Cron, Schedule
from prefect.types.entrypoint import EntrypointType

from deployments.job_templates import PoolKind, base_job_template
from flows.cli import DEMO_CONFIG, ROOT
from flows.janitor_flow import janitor_flow
from flows.predict_flow import predict_flow
from flows.reevaluate_flow import reevaluate_flow
from flows.sft_flow import CHAMPION_FAILS, NOTHING_NEW, sft_flow
from flows.train_flow import train_flow
from tasks.announcements import CHAMPION_FAILING, PROMOTED, ROLLED_BACK
from tasks.recovery import CRASHED_RUN_RESUMES_AFTER, JANITOR_PERIOD, SILENT_RUN_CRASHES_AFTER
from training_core.config import read_settings_file

WEEKLY = Cron("0 3 * * 1", timezone="UTC", active=False, slug="weekly")
OFTEN = Cron(f"*/{JANITOR_PERIOD.seconds // 60} * * * *", timezone="UTC", slug="often")
ROWS_UPDATED = "rows.updated"
JANITOR_QUEUE = "janitor"


_FINAL_STATES = ("Completed", NOTHING_NEW, CHAMPION_FAILS, "Failed", "TimedOut", "Cancelled", "Crashed")
_OPEN_STATES = (
    *("Scheduled", "Late", "AwaitingRetry", "AwaitingConcurrencySlot", "Resuming", "Pending", "Submitting"),
    *("Running", "Retrying", "Paused", "Suspended", "Cancelling"),
)


@dataclass(frozen=True)
class Pool:
    """A work pool and its queues by priority, 1 first; workers take the higher queue first."""

    name: str
    kind: PoolKind
    template: dict[str, Any]
    queues: Mapping[str, int]


def pools(kind: PoolKind) -> list[Pool]:
    """One pool for work without a GPU, and one whose workers have a GPU each and take one run at a time."""
    return [
        # A run that waits for its training keeps its place at a worker; the janitor has a worker of its own.
        Pool("cpu", kind, base_job_template(kind, gpu=False), {JANITOR_QUEUE: 1, "default": 2}),
        Pool("gpu", kind, base_job_template(kind, gpu=True), {"urgent": 1, "default": 2}),
    ]


def deployments(demo_rows: str) -> list[RunnerDeployment]:
    """All deployments; their parameters hold only what differs from ``RunConfig``'s defaults."""
    on_gpu = {"train_on": "train-flow/gpu"}
    qwen = read_settings_file(ROOT / "configs" / "qwen.yaml") | on_gpu
    demo = read_settings_file(DEMO_CONFIG) | on_gpu | {"dataset_path": demo_rows}
    return [
        _deployment(train_flow, "gpu", "gpu"),
        _deployment(sft_flow, "qwen", "cpu", qwen, WEEKLY),
        _deployment(sft_flow, "demo", "cpu", demo),
        _deployment(reevaluate_flow, "qwen", "gpu", qwen),
        _deployment(reevaluate_flow, "demo", "gpu", demo),
        _deployment(predict_flow, "gpu", "gpu"),
        _deployment(janitor_flow, "often", "cpu", {}, OFTEN, JANITOR_QUEUE),
    ]


def _deployment(
    flow: Flow[..., Any],
    name: str,
    pool: str,
    parameters: dict[str, Any] | None = None,
    schedule: Schedule | None = None,
    queue: str = "default",
) -> RunnerDeployment:
    # Workers have the code installed, so a module path is enough: no storage, no pull step.
    return flow.to_deployment(  # type: ignore[return-value]  # a coroutine only where the caller is one
        name,
        work_pool_name=pool,
        work_queue_name=queue,
        parameters=parameters or {},
        schedules=[schedule] if schedule else [],
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def automations(ids: Mapping[str, UUID], notify: UUID | None) -> list[AutomationCore]:
    """All automations, given the ids of the deployments and of a notification block."""
    resumable = [ids[name] for name in ids if not name.startswith("janitor-flow/")]
    found = [crash_silent_runs(resumable), resume_crashed_runs(resumable), train_on_new_rows(ids["sft-flow/qwen"])]
    return [*found, *(notifications(resumable, notify) if notify else [])]


def crash_silent_runs(deployment_ids: list[UUID]) -> AutomationCore:
    """Mark a run as Crashed when its heartbeats stop before it reaches a final state."""
    ends = [f"prefect.flow-run.{state}" for state in (*_FINAL_STATES, "AwaitingRetry")]
    return AutomationCore(
        name="sft-flow: crash silent runs",
        description="Marks a run as Crashed when its heartbeats stop: its machine is dead or frozen.",
        trigger=EventTrigger(
            **_runs_of(deployment_ids),
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *ends},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENT_RUN_CRASHES_AFTER,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED, message=f"no heartbeat in {SILENT_RUN_CRASHES_AFTER.seconds} seconds"
            )
        ],
    )


def resume_crashed_runs(deployment_ids: list[UUID]) -> AutomationCore:
    """Schedule a crashed run again; it resumes from its last checkpoint. Waits first: a worker may report one crash
    twice. A heartbeat after the crash is no new state: the process may be alive, and ends when it sees its run crashed.
    """
    return AutomationCore(
        name="sft-flow: resume crashed runs",
        description="Schedules a crashed run again; it resumes from its last checkpoint.",
        trigger=EventTrigger(
            **_runs_of(deployment_ids),
            after={"prefect.flow-run.Crashed"},
            expect={f"prefect.flow-run.{state}" for state in (*_FINAL_STATES, *_OPEN_STATES)},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=CRASHED_RUN_RESUMES_AFTER,
        ),
        actions=[ChangeFlowRunState(state=StateType.SCHEDULED, name="AwaitingRetry", message="resumed")],
    )


def train_on_new_rows(deployment_id: UUID) -> AutomationCore:
    """Start a run on an event: ``prefect event emit rows.updated --resource-id rows``.

    ``--payload '{"dataset_path": "s3://…"}'`` names other rows; all other settings are those of the deployment.
    """
    changed = '{{ ({"dataset_path": event.payload.dataset_path} if event.payload.dataset_path else {}) | tojson }}'
    return AutomationCore(
        name="sft-flow: train on new rows",
        description="Starts sft-flow/qwen on the event rows.updated; its payload may name another dataset_path.",
        trigger=EventTrigger(expect={ROWS_UPDATED}, posture=Posture.Reactive, threshold=1, within=timedelta(0)),
        actions=[RunDeployment(source="selected", deployment_id=deployment_id, parameters=_rendered(changed))],
    )


def _rendered(template: str) -> dict[str, Any]:
    """Parameters that the server renders, as JSON, when the action runs."""
    return {"__prefect_kind": "json", "value": {"__prefect_kind": "jinja", "template": template}}


def notifications(deployment_ids: list[UUID], block: UUID) -> list[AutomationCore]:
    """Send failures and promotions through a notification block."""
    name, url = "{{ flow_run.name }}", "{{ flow_run|ui_url }}"
    failed: ActionTypes = SendNotification(
        block_document_id=block, subject=f"sft-flow: {name} failed", body="{{ flow_run.state.message }}\n" + url
    )
    promoted: ActionTypes = SendNotification(
        block_document_id=block, subject="sft-flow: the champion changed", body="{{ event.payload.verdict }}"
    )
    failing: ActionTypes = SendNotification(
        block_document_id=block, subject="sft-flow: the champion no longer passes", body="{{ event.payload.verdict }}"
    )
    return [
        AutomationCore(
            name="sft-flow: notify of failures",
            description="Sends the name, message and URL of a failed run.",
            trigger=EventTrigger(
                **_runs_of(deployment_ids),
                expect={"prefect.flow-run.Failed"},
                for_each={"prefect.resource.id"},
                posture=Posture.Reactive,
                threshold=1,
                within=timedelta(0),
            ),
            actions=[failed],
        ),
        AutomationCore(
            name="sft-flow: notify of promotions",
            description="Sends the verdict on a version that became champion, also by hand or by a rollback.",
            trigger=EventTrigger(
                expect={PROMOTED, ROLLED_BACK}, posture=Posture.Reactive, threshold=1, within=timedelta(0)
            ),
            actions=[promoted],
        ),
        AutomationCore(
            name="sft-flow: a failing champion is reported",
            trigger=EventTrigger(expect={CHAMPION_FAILING}, posture=Posture.Reactive, threshold=1, within=timedelta(0)),
            actions=[failing],
        ),
    ]


def _runs_of(deployment_ids: list[UUID]) -> dict[str, Any]:
    return {
        "match": {"prefect.resource.id": "prefect.flow-run.*"},
        "match_related": {
            "prefect.resource.role": "deployment",
            "prefect.resource.id": [f"prefect.deployment.{deployment_id}" for deployment_id in deployment_ids],
        },
    }
