"""The README says what is so."""

import json
import re
import shlex
from pathlib import Path

import pytest
from benchmarks.findings import Findings

from benchmarks.faults import RESULTS as FAULTS
from benchmarks.faults import faults_table
from benchmarks.report import PICTURE, RESULTS, section
from flows.settings_table import settings_table
from training_core.config import config_from_command_line, read_settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_settings_table_is_that_of_run_config() -> None:
    assert settings_table() in README, "run `python -m flows.settings_table`"


@pytest.mark.parametrize("name", ["run", "check"])
def test_every_command_in_the_readme_has_settings_that_are_accepted(name: str) -> None:
    commands = re.findall(rf"^sft-flow {name} (.*?)(?:\s+#.*)?$", README, flags=re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        arguments = _from_root(shlex.split(command))
        read_settings(config_from_command_line(arguments, f"sft-flow {name}", takes_rows=name == "check"))


def test_every_picture_in_the_readme_is_there() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).is_file(), picture


def test_the_readme_shows_what_the_demo_prints() -> None:
    shown = README.split("<!-- demo:begin -->")[1].split("<!-- demo:end -->")[0]
    for part in ("Decisions on held-out rows", "lookup table", "Every line accounted for", "sft-flow ui"):
        assert part in shown


def test_the_figures_of_speed_are_those_of_the_last_benchmark() -> None:
    assert section(Findings.load(RESULTS)) in README, "run `make bench`"
    assert PICTURE.exists()


def test_every_make_target_in_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", README, flags=re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


def test_the_file_map_names_what_is_there() -> None:
    listed = re.findall(
        r"^(\w[\w./]*)\s{2,}", README.split("## The files")[1].split("## Licence")[0], flags=re.MULTILINE
    )
    assert len(listed) >= 8
    for name in listed:
        assert (ROOT / name).exists(), name


def _from_root(arguments: list[str]) -> list[str]:
    return [str(ROOT / part) if part.startswith("configs/") else part for part in arguments]


def test_the_table_of_faults_is_what_was_measured() -> None:
    measured = json.loads(FAULTS.read_text(encoding="utf-8"))
    assert faults_table(measured) in README, "run `python -m benchmarks.faults`"
