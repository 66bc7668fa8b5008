"""The job templates, checked with Prefect's own workers, the server's validation and the schema of Kubernetes."""

import asyncio
import copy
import json
import re
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import kubernetes_validate
import pytest
import yaml
from prefect.client.schemas.objects import FlowRun
from prefect.events.clients import NullEventsClient
from prefect.events.worker import EventsWorker
from prefect.server.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.utilities.schema_tools import validate
from prefect.workers.base import BaseJobConfiguration, BaseWorker
from prefect_docker.worker import DockerWorker
from stand_in_engine import KILLED, StandInEngine

from deployments.job_templates import FROM_THE_WORKER, USER, WORK_FOLDER, PoolKind, base_job_template
from flows.cli import ENVIRONMENT

DEPLOYMENTS = Path(__file__).parents[2] / "deployments"
KINDS: tuple[PoolKind, ...] = get_args(PoolKind)
EVERY_POOL = [(kind, gpu) for kind in KINDS for gpu in (False, True)]
SECRET = "not-to-be-seen"


def job(kind: PoolKind, gpu: bool, **job_variables: Any) -> Any:
    """The job configuration that a worker makes of the template for one flow run."""
    worker = BaseWorker.get_worker_class_from_type(kind)
    assert worker is not None
    configuration: type[BaseJobConfiguration] = worker.job_configuration
    no_server = object()
    made = asyncio.run(
        configuration.from_template_and_values(base_job_template(kind, gpu), job_variables, client=no_server)
    )
    made.prepare_for_flow_run(FlowRun(id=uuid.uuid4(), flow_id=uuid.uuid4(), name="quick-run"))
    return made


def manifest(gpu: bool, **job_variables: Any) -> dict[str, Any]:
    found: dict[str, Any] = job("kubernetes", gpu, **job_variables).job_manifest
    return found


def pod(gpu: bool, **job_variables: Any) -> dict[str, Any]:
    found: dict[str, Any] = manifest(gpu, **job_variables)["spec"]["template"]["spec"]
    return found


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInEngine]:
    with StandInEngine() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{server.server_port}")
        EventsWorker.set_client_override(NullEventsClient)
        with temporary_settings({PREFECT_API_URL: "http://prefect.example/api"}):
            yield server
        EventsWorker.set_client_override(None)
        server.shutdown()


def run_container(gpu: bool) -> int:
    """Run one container with Prefect's worker, and return the exit code that the worker reports."""
    worker = DockerWorker(work_pool_name="any", test_mode=True)
    flow_run = FlowRun(id=uuid.uuid4(), flow_id=uuid.uuid4(), name="quick-run")
    return asyncio.run(worker.run(flow_run, job("docker", gpu))).status_code


@pytest.mark.parametrize(("kind", "gpu"), EVERY_POOL)
def test_template_is_accepted_by_the_server(kind: PoolKind, gpu: bool) -> None:
    template = base_job_template(kind, gpu)
    WorkPoolCreate(name="pool", type=kind, base_job_template=template)
    properties = template["variables"]["properties"]
    defaults = {name: found["default"] for name, found in properties.items() if found.get("default") is not None}
    assert not validate(defaults, template["variables"], raise_on_error=False, preprocess=True)


@pytest.mark.parametrize(("kind", "gpu"), EVERY_POOL)
def test_template_sets_heartbeat_logging_and_quiet_libraries(kind: PoolKind, gpu: bool) -> None:
    environment = job(kind, gpu).env
    assert environment.items() >= ENVIRONMENT.items()
    assert environment["PREFECT_LOGGING_EXTRA_LOGGERS"] == "training_core"
    assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"


@pytest.mark.parametrize("kind", KINDS)
def test_template_of_cpu_and_gpu_differs_in_defaults(kind: PoolKind) -> None:
    def without_defaults(gpu: bool) -> dict[str, Any]:
        template = base_job_template(kind, gpu)
        for variable in template["variables"]["properties"].values():
            variable.pop("default", None)
        return template

    assert without_defaults(gpu=False) == without_defaults(gpu=True)


@pytest.mark.parametrize(("kind", "gpu"), EVERY_POOL)
def test_template_contains_no_value_of_the_environment(
    kind: PoolKind, gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in FROM_THE_WORKER:
        monkeypatch.setenv(name, SECRET)
    assert SECRET not in json.dumps(base_job_template(kind, gpu))


def test_template_of_an_uninstalled_kind_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"pip install '\.\[ecs\]'"):
        base_job_template("ecs", gpu=False)  # type: ignore[arg-type]


def test_process_starts_in_the_workers_folder_without_streaming() -> None:
    configuration = job("process", gpu=True)
    assert configuration.working_dir == Path()
    assert configuration.stream_output is False


def test_container_has_no_privileges(engine: StandInEngine) -> None:
    run_container(gpu=True)
    container, host = engine.created[0], engine.created[0]["HostConfig"]
    assert container["User"] == f"{USER}:{USER}"
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert not host.get("Privileged")


@pytest.mark.parametrize("gpu", [False, True])
def test_container_of_the_gpu_pool_alone_gets_gpus(engine: StandInEngine, gpu: bool) -> None:
    run_container(gpu)
    requested = engine.created[0]["HostConfig"].get("DeviceRequests")
    assert [(device["Driver"], device["Count"]) for device in requested or []] == ([("nvidia", 1)] if gpu else [])
    assert engine.created[0]["Image"] == f"sft-flow:{'gpu' if gpu else 'cpu'}"


def test_container_that_is_killed_is_no_success(engine: StandInEngine) -> None:
    assert run_container(gpu=True) == KILLED


def test_container_gets_the_workers_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FROM_THE_WORKER:
        monkeypatch.setenv(name, f"value of {name}")
    assert job("docker", gpu=True).env.items() >= {name: f"value of {name}" for name in FROM_THE_WORKER}.items()


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_container_keeps_prefects_home_on_its_volume(kind: PoolKind) -> None:
    assert job(kind, gpu=True).env["PREFECT_HOME"].startswith(f"{WORK_FOLDER}/")


@pytest.mark.parametrize("gpu", [False, True])
def test_job_fits_the_schema_of_kubernetes(gpu: bool) -> None:
    checked = copy.deepcopy(manifest(gpu, memory_limit="32Gi", cpu_request="4", service_account_name="runner"))
    misplaced = {checked["spec"]["template"]["spec"].pop(name) for name in ("parallelism", "completions")}
    assert misplaced == {1}, "Prefect's worker requires these in the pod, where the API server ignores them"
    kubernetes_validate.validate(checked, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize(("gpu", "limits"), [(False, {}), (True, {"nvidia.com/gpu": 1})])
def test_job_of_the_gpu_pool_alone_gets_gpus(gpu: bool, limits: dict[str, int]) -> None:
    found = pod(gpu)
    assert found["containers"][0]["resources"]["limits"] == limits
    assert [taint["key"] for taint in found["tolerations"]] == list(limits)
    assert pod(gpu, gpus=4)["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 4}


def test_job_has_no_privileges_and_no_cluster_access() -> None:
    found = pod(gpu=True)
    account = {name: found["securityContext"][name] for name in ("runAsNonRoot", "runAsUser", "fsGroup")}
    assert account == {"runAsNonRoot": True, "runAsUser": USER, "fsGroup": USER}
    assert found["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert found["containers"][0]["securityContext"] == {
        "privileged": False,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert found["automountServiceAccountToken"] is False


def test_job_takes_secrets_by_name_and_volumes_by_claim() -> None:
    found = pod(gpu=True, secret_name="team", volume_claim="fast", shm_size="16Gi")
    container = found["containers"][0]
    assert container["envFrom"] == [{"secretRef": {"name": "team"}}]
    assert {entry["name"] for entry in container["env"]}.isdisjoint(FROM_THE_WORKER)
    assert found["volumes"][0]["persistentVolumeClaim"] == {"claimName": "fast"}
    assert found["volumes"][1]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {WORK_FOLDER, "/dev/shm"}
    assert container["workingDir"] == WORK_FOLDER


def test_job_is_not_restarted_and_has_no_deadline() -> None:
    found = manifest(gpu=True)["spec"]
    assert found["backoffLimit"] == 0
    assert "activeDeadlineSeconds" not in found | found["template"]["spec"]
    assert found["template"]["spec"]["terminationGracePeriodSeconds"] >= 30
    assert found["ttlSecondsAfterFinished"] > 0
    environment = found["template"]["spec"]["containers"][0]["env"]
    behaviour = [entry["value"] for entry in environment if entry["name"].endswith("SIGTERM_BEHAVIOR")]
    assert behaviour == ["reschedule"], "an evicted run must be rescheduled"


def test_run_in_a_process_chooses_no_command_and_no_folder(tmp_path: Path) -> None:
    """By its own job variables, which come over the API. Prefect merges its environment: `require_allowed` refuses."""
    changed = job("process", gpu=False, command="touch here", working_dir=str(tmp_path))
    plain = job("process", gpu=False)
    assert changed.command == plain.command and "prefect.engine" in changed.command
    assert changed.working_dir == plain.working_dir
    properties = base_job_template("process", gpu=False)["variables"]["properties"]
    assert properties.keys().isdisjoint({"command", "env", "working_dir"}), "the form does not offer them"


def test_image_names_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFT_FLOW_IMAGE", "registry.example/team/sft-flow")
    assert job("docker", gpu=True).image == "registry.example/team/sft-flow:gpu"
    assert pod(gpu=False)["containers"][0]["image"] == "registry.example/team/sft-flow:cpu"


def test_job_mounts_the_claims_of_kubernetes_volumes() -> None:
    claims = list(yaml.safe_load_all((DEPLOYMENTS / "kubernetes_volumes.yaml").read_text(encoding="utf-8")))
    for claim in claims:
        kubernetes_validate.validate(claim, kubernetes_validate.latest_version(), strict=True)
    mounted = [pod(gpu)["volumes"][0]["persistentVolumeClaim"]["claimName"] for gpu in (False, True)]
    assert [claim["metadata"]["name"] for claim in claims] == mounted


@pytest.mark.parametrize(("kind", "heading"), [("docker", "## Docker"), ("kubernetes", "## Kubernetes")])
def test_readme_tables_have_the_templates_defaults(kind: PoolKind, heading: str) -> None:
    section = (DEPLOYMENTS / "README.md").read_text(encoding="utf-8").split(f"\n{heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) ?\| (.*?) ?\| ", section, flags=re.MULTILINE)
    assert len(rows) >= 5
    for name, *cells in rows:
        for gpu, cell in zip((False, True), cells, strict=True):
            default = base_job_template(kind, gpu)["variables"]["properties"][name].get("default")
            shown = cell.strip("`")
            plain = default[0] if isinstance(default, list) and default else default
            assert shown == str(plain) if isinstance(plain, str | int) else bool(shown) == bool(plain), name
