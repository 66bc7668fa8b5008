"""The Docker image: its content, the order of its layers, and its user."""

import json
import re
import shlex
from pathlib import Path

from deployments.job_templates import KUBERNETES_JOB, USER, WORK_FOLDER

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "deployments" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
STEPS = [tuple(line.split(maxsplit=1)) for line in TEXT.splitlines() if line and not line.startswith("#")]


def arguments(instruction: str) -> list[str]:
    return [argument for name, argument in STEPS if name == instruction]


def allowed_in() -> set[str]:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in lines, "everything else is excluded"
    return {line.removeprefix("!") for line in lines if line.startswith("!")}


def test_image_rebuild_after_a_code_change_installs_nothing() -> None:
    code = STEPS.index(("COPY", ". ./"))
    installs = [(index, step[1]) for index, step in enumerate(STEPS) if "pip install" in step[-1]]
    assert [("--no-deps" in command) for index, command in installs if index > code] == [True]
    before = [command for index, command in installs if index < code]
    assert "torch==" in before[0], "torch's exact pin comes first, or pip may fetch another build of it"
    assert all("--constraint constraints.txt" in command for command in before)
    copied = [step[1] for step in STEPS[:code] if step[0] == "COPY"]
    assert copied == ["constraints.txt ./", "pyproject.toml ./"]


def test_image_finds_the_pin_of_torch() -> None:
    pattern = re.search(r"grep '(\^torch==)'", TEXT)
    assert pattern
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if re.match(pattern[1], line)]
    assert len(pins) == 1


def test_image_uses_existing_extras_and_packages() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.search(r"'\.\[([\w,]+)\]'", TEXT)
    assert extras
    for extra in extras[1].split(","):
        assert re.search(rf"^{extra} = \[", project, flags=re.MULTILINE), extra
    placeholders = re.search(r"mkdir ([\w ]+) &&", TEXT)
    packages = re.search(r"^packages = (\[.*\])$", project, flags=re.MULTILINE)
    assert placeholders and packages
    assert set(placeholders[1].split()) == set(json.loads(packages[1]))


def test_image_context_has_what_is_copied_and_no_secret() -> None:
    allowed = allowed_in()
    sources = {shlex.split(argument)[0] for argument in arguments("COPY")} - {"."}
    project = {"training_core", "tasks", "flows", "deployments", "samples", "configs", "README.md", "LICENSE"}
    assert sources | project == allowed
    assert all((ROOT / name).exists() for name in allowed)
    assert "**/*.env" in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()


def test_image_user_and_folder_match_the_pools() -> None:
    assert arguments("USER") == [f"{USER}:{USER}"]
    assert f"--uid {USER} " in TEXT
    assert arguments("WORKDIR")[-1] == WORK_FOLDER
    job = KUBERNETES_JOB.read_text(encoding="utf-8")
    assert re.findall(r"(?:runAsUser|runAsGroup|fsGroup): (\d+)", job) == [str(USER)] * 3


def test_image_contains_no_secret() -> None:
    assert not re.findall(r"(?i)(?:password|secret|token|access_key)", TEXT)
    assert arguments("ARG") == ["TORCH_INDEX=https://download.pytorch.org/whl/cpu"]


def test_image_has_the_compiler_that_kernels_need() -> None:
    """Triton needs it at run time; the headers of Python are those of the base image's own build."""
    (packages,) = [re.findall(r"[a-z0-9-]+", step[1]) for step in STEPS if "apt-get install" in step[-1]]
    assert {"gcc", "libc6-dev"} <= set(packages)
    assert arguments("FROM")[0].startswith("python:"), "an image of Debian's Python would need python3-dev"
