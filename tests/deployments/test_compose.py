"""compose.yaml: it requires secrets and contains none, and its workers share no volume."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOYMENTS = Path(__file__).parents[2] / "deployments"
COMPOSE = DEPLOYMENTS / "compose.yaml"
LOGIN = DEPLOYMENTS / "compose.login.yaml"
TEXT = COMPOSE.read_text(encoding="utf-8")
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(TEXT)["services"]


def example(name: str) -> dict[str, str]:
    lines = (DEPLOYMENTS / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


EXAMPLE = example(".env.example")
# Read by Compose itself, not used in the file.
OF_COMPOSE = {"COMPOSE_PROJECT_NAME"}
SECRETS = {"PREFECT_DB_PASSWORD", "MLFLOW_DB_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY"}
LOGIN_SECRETS = {"LOGIN_USER", "LOGIN_PASSWORD", "MLFLOW_FORM_SECRET"}
EMPTY = {"SFT_FLOW_SECRET", "HF_TOKEN", "SFT_FLOW_ALLOWED_ROOTS", "SFT_FLOW_ALLOWED_FUNCTIONS"}
WORKERS = ("worker-cpu", "worker-janitor", "worker-gpu")


def compose_client() -> list[str] | None:
    """A Compose client that needs no engine to read a file: Docker's plugin, or Debian's docker-compose."""
    if shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else None


CLIENT = compose_client()
needs_compose = pytest.mark.skipif(CLIENT is None, reason="no docker compose and no docker-compose on the PATH")


def read_by_compose(tmp_path: Path, values: dict[str, str], *files: Path) -> subprocess.CompletedProcess[str]:
    assert CLIENT
    env_file = tmp_path / "filled.env"
    env_file.write_text("".join(f"{name}={value}\n" for name, value in values.items()), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name not in EXAMPLE}
    given = [word for file in (COMPOSE, *files) for word in ("--file", str(file))]
    command = [*CLIENT, *given, "--env-file", str(env_file), "--profile", "gpu", "config"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def volumes_of(name: str) -> set[str]:
    return {str(volume).partition(":")[0] for volume in SERVICES[name].get("volumes", [])}


@needs_compose
def test_compose_accepts_the_file_with_all_secrets(tmp_path: Path) -> None:
    read = read_by_compose(tmp_path, EXAMPLE | dict.fromkeys(SECRETS, "abc123"))
    assert read.returncode == 0, read.stderr
    services = yaml.safe_load(read.stdout)["services"]
    assert set(services) == set(SERVICES)
    assert "@prefect-db/prefect" in services["prefect"]["environment"]["PREFECT_SERVER_DATABASE_CONNECTION_URL"]


@needs_compose
@pytest.mark.parametrize("missing", sorted(SECRETS))
def test_compose_rejects_the_file_without_a_secret(tmp_path: Path, missing: str) -> None:
    read = read_by_compose(tmp_path, EXAMPLE | dict.fromkeys(SECRETS, "abc123") | {missing: ""})
    assert read.returncode != 0
    assert "fill in deployments/.env" in read.stderr


@needs_compose
def test_login_is_for_both_servers_and_all_who_use_them(tmp_path: Path) -> None:
    read = read_by_compose(tmp_path, EXAMPLE | dict.fromkeys(SECRETS | LOGIN_SECRETS, "abc123"), LOGIN)
    assert read.returncode == 0, read.stderr
    services = yaml.safe_load(read.stdout)["services"]
    assert set(services) == set(SERVICES)
    assert services["prefect"]["environment"]["PREFECT_SERVER_API_AUTH_STRING"] == "abc123:abc123"
    assert "--app-name basic-auth" in " ".join(services["mlflow"]["command"])
    for name in ("deploy", *WORKERS):
        environment = services[name]["environment"]
        assert environment["PREFECT_API_AUTH_STRING"] == "abc123:abc123"
        assert environment["MLFLOW_TRACKING_PASSWORD"] == "abc123"
        assert environment["PREFECT_API_URL"], "the rest of the environment stays"


@needs_compose
@pytest.mark.parametrize("missing", sorted(LOGIN_SECRETS))
def test_login_is_rejected_while_a_part_is_missing(tmp_path: Path, missing: str) -> None:
    values = EXAMPLE | dict.fromkeys(SECRETS | LOGIN_SECRETS, "abc123") | {missing: ""}
    read = read_by_compose(tmp_path, values, LOGIN)
    assert read.returncode != 0
    assert "fill in deployments/.env" in read.stderr


def test_workers_know_the_addresses_that_browsers_use() -> None:
    """The names of the network's services are no links for people."""
    for worker in WORKERS:
        environment = SERVICES[worker]["environment"]
        for name in ("PREFECT_UI_URL", "SFT_FLOW_MLFLOW_URL"):
            assert environment[name].startswith("http://${PUBLIC_HOST:-localhost}:")


def test_env_example_has_every_variable_and_no_secret() -> None:
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", TEXT + LOGIN.read_text(encoding="utf-8")))
    assert used | OF_COMPOSE == set(EXAMPLE)
    assert {name for name, value in EXAMPLE.items() if not value} == SECRETS | LOGIN_SECRETS | EMPTY


def test_compose_requires_secrets_and_contains_none() -> None:
    for name in SECRETS:
        uses = re.findall(rf"\$\{{{name}([^}}]*)\}}", TEXT)
        assert uses and all(use.startswith(":?") for use in uses), name
    for service, definition in SERVICES.items():
        for name, value in definition.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|CONNECTION_URL|STORE_URI", name):
                assert "${" in value, f"{service}: {name}"
    assert "*.env" in (DEPLOYMENTS.parent / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_workers_share_no_volume() -> None:
    for worker in WORKERS:
        others = [volumes_of(name) for name in SERVICES if name != worker]
        assert volumes_of(worker) and volumes_of(worker).isdisjoint(set().union(*others))


def test_workers_get_server_addresses_but_no_database() -> None:
    for worker in WORKERS:
        names = set(SERVICES[worker]["environment"])
        assert names >= {"PREFECT_API_URL", "MLFLOW_TRACKING_URI", "SFT_FLOW_STORE"}
        assert not any("DB" in name or "DATABASE" in name for name in names)


def test_worker_env_example_matches_compose_and_has_no_secret() -> None:
    elsewhere = example("worker.env.example")
    assert elsewhere.keys() == SERVICES["worker-gpu"]["environment"].keys()
    assert {name for name, value in elsewhere.items() if not value} == {
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", *EMPTY),
    }


def test_gpu_worker_alone_gets_gpus_and_one_run() -> None:
    with_gpus = [name for name in SERVICES if "deploy" in SERVICES[name]]
    assert with_gpus == ["worker-gpu"]
    (device,) = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert SERVICES["worker-gpu"]["command"].endswith("--limit 1")
    assert SERVICES["worker-gpu"]["profiles"] == ["gpu"], "the others start on a machine without a GPU"


def test_services_wait_until_their_dependencies_are_ready() -> None:
    for name, definition in SERVICES.items():
        for needed, wait in definition.get("depends_on", {}).items():
            lasting = SERVICES[needed]["restart"] != "no"
            assert wait["condition"] == ("service_healthy" if lasting else "service_completed_successfully"), name
            assert "healthcheck" in SERVICES[needed] or not lasting, needed
    assert SERVICES["worker-gpu"]["depends_on"].keys() >= {"deploy", "mlflow", "buckets"}


def test_data_is_kept_in_named_volumes() -> None:
    declared = set(yaml.safe_load(TEXT)["volumes"])
    used = set().union(*(volumes_of(name) for name in SERVICES))
    assert used == declared >= {"prefect-db", "mlflow-db", "store"}


def test_ports_are_bound_to_this_machine_by_default() -> None:
    ports = [port for definition in SERVICES.values() for port in definition.get("ports", [])]
    assert len(ports) == 3
    assert all(port.startswith("${BIND_ADDRESS:-127.0.0.1}:") for port in ports)
    assert EXAMPLE["BIND_ADDRESS"] == "127.0.0.1"


def test_containers_have_no_privileges() -> None:
    ours = [definition for definition in SERVICES.values() if "build" in definition]
    assert len(ours) == 7
    for definition in ours:
        assert definition["cap_drop"] == ["ALL"]
        assert definition["security_opt"] == ["no-new-privileges:true"]
        assert not definition.keys() & {"privileged", "user", "cap_add"}
