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

from deployments.job_templates import HEARTBEAT_SECONDS, PoolKind, base_job_template
from flows.cli import DEMO_CONFIG, ROOT
from flows.janitor_flow import janitor_flow
from flows.reevaluate_flow import reevaluate_flow
from flows.sft_flow import CHAMPION_FAILS, NOTHING_NEW, sft_flow
from flows.train_flow import train_flow
from tasks.janitor import JANITOR_PERIOD
from tasks.promotion import CHAMPION_FAILING, PROMOTED
from training_core.config import read_settings_file

WEEKLY = Cron("0 3 * * 1", timezone="UTC", active=False, slug="weekly")
OFTEN = Cron(f"*/{JANITOR_PERIOD.seconds // 60} * * * *", timezone="UTC", slug="often")
ROWS_UPDATED = "rows.updated"

# A machine is given up after three heartbeats; a crashed run that nothing has moved for a minute is resumed.
SILENT_RUN_CRASHES_AFTER = timedelta(seconds=3 * HEARTBEAT_SECONDS)
CRASHED_RUN_RESUMES_AFTER = timedelta(seconds=60)


@dataclass(frozen=True)
class Pool:
    """A work pool and its queues by priority, 1 first; workers take the higher queue first."""

    name: str
    kind: PoolKind
    template: dict[str, Any]
    queues: Mapping[str, int]


def pools(kind: PoolKind) -> list[Pool]:
    """A pool for what needs no GPU, and one whose workers each have one and take one run at a time."""
    return [
        Pool("cpu", kind, base_job_template(kind, gpu=False), {}),
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
        _deployment(janitor_flow, "often", "cpu", {}, OFTEN),
    ]


def _deployment(
    flow: Flow[..., Any],
    name: str,
    pool: str,
    parameters: dict[str, Any] | None = None,
    schedule: Schedule | None = None,
) -> RunnerDeployment:
    # A worker has the code installed, so the module's name is all it needs: no storage, no pull step.
    return flow.to_deployment(  # type: ignore[return-value]  # a coroutine only where the caller is one
        name,
        work_pool_name=pool,
        parameters=parameters or {},
        schedules=[schedule] if schedule else [],
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def automations(ids: Mapping[str, UUID], notify: UUID | None) -> list[AutomationCore]:
    """What happens without anybody looking, given the ids of the deployments and of a notification block."""
    resumable = [ids[name] for name in ids if not name.startswith("janitor-flow/")]
    found = [crash_silent_runs(resumable), resume_crashed_runs(resumable), train_on_new_rows(ids["sft-flow/qwen"])]
    return [*found, *(notifications(resumable, notify) if notify else [])]


def crash_silent_runs(deployment_ids: list[UUID]) -> AutomationCore:
    """A run whose heartbeats stop without an end has crashed, whoever was there to say so."""
    states = ("Completed", NOTHING_NEW, CHAMPION_FAILS, "Failed", "Cancelled", "Crashed", "AwaitingRetry")
    return AutomationCore(
        name="sft-flow: a silent run has crashed",
        trigger=EventTrigger(
            **_runs_of(deployment_ids),
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{state}" for state in states)},
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
    """A crashed run is scheduled again; it goes on from what is on disk. The worker may report a crash twice, so
    nothing is done before a minute has passed."""
    return AutomationCore(
        name="sft-flow: a crashed run is resumed",
        trigger=EventTrigger(
            **_runs_of(deployment_ids),
            after={"prefect.flow-run.Crashed"},
            expect={"prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=CRASHED_RUN_RESUMES_AFTER,
        ),
        actions=[ChangeFlowRunState(state=StateType.SCHEDULED, name="AwaitingRetry", message="resumed")],
    )


def train_on_new_rows(deployment_id: UUID) -> AutomationCore:
    """New rows start a run: ``prefect event emit rows.updated --resource-id rows``.

    With ``--payload '{"dataset_path": "s3://…"}'`` on rows that lie elsewhere; all else is as deployed.
    """
    changed = '{{ ({"dataset_path": event.payload.dataset_path} if event.payload.dataset_path else {}) | tojson }}'
    return AutomationCore(
        name="sft-flow: new rows are trained on",
        trigger=EventTrigger(expect={ROWS_UPDATED}, posture=Posture.Reactive, threshold=1, within=timedelta(0)),
        actions=[RunDeployment(source="selected", deployment_id=deployment_id, parameters=_rendered(changed))],
    )


def _rendered(template: str) -> dict[str, Any]:
    """Parameters that the server renders, as JSON, when the action is taken."""
    return {"__prefect_kind": "json", "value": {"__prefect_kind": "jinja", "template": template}}


def notifications(deployment_ids: list[UUID], block: UUID) -> list[AutomationCore]:
    """Failure and promotion, sent through a notification block."""
    name, url = "{{ flow_run.name }}", "{{ flow_run|ui_url }}"
    failed: ActionTypes = SendNotification(
        block_document_id=block, subject=f"sft-flow: {name} failed", body="{{ flow_run.state.message }}\n" + url
    )
    promoted: ActionTypes = SendNotification(
        block_document_id=block, subject="sft-flow: a new champion", body="{{ event.payload.verdict }}"
    )
    failing: ActionTypes = SendNotification(
        block_document_id=block, subject="sft-flow: the champion no longer passes", body="{{ event.payload.verdict }}"
    )
    return [
        AutomationCore(
            name="sft-flow: failures are told",
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
            name="sft-flow: promotions are told",
            trigger=EventTrigger(expect={PROMOTED}, posture=Posture.Reactive, threshold=1, within=timedelta(0)),
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
