"""README.md and docs/: commands, links, names and generated sections match the project."""

import ast
import dataclasses
import importlib
import importlib.util
import itertools
import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import chaos, faults, gate, gate_adapters, gpu_page, real_rows_page
from benchmarks import predict as prediction
from benchmarks import report as speed
from benchmarks.chaos_table import table
from benchmarks.measurements import Measurements
from deployments.topology import ROWS_UPDATED, deployments, pools
from flows import cli, demo_output, predict_cli, settings_table
from flows.doc_sections import DOCS, README, ROOT, read_section
from flows.predict_flow import predict_flow
from flows.reevaluate_flow import reevaluate_flow
from flows.sft_flow import sft_flow
from training_core.config import config_from_command_line, read_settings, settings_info
from training_core.evaluation.report import score_grid
from training_core.evaluation.scores import Scores

PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "deployments" / "README.md", *sorted(DOCS.glob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
EVERYTHING = "\n".join(TEXTS.values())
MOST_README_LINES = 220
MOST_TERMS = 25

each_page = pytest.mark.parametrize("page", PAGES, ids=TEXTS)


def code_blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of this language; a closing fence is no opening one."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [block for found, block in blocks if found == language]


def commands(start: str) -> list[str]:
    """The lines of all shell blocks that begin with these words, without environment variables and comments."""
    lines = [
        re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line) for block in code_blocks(EVERYTHING, "") for line in block.split("\n")
    ]
    return [re.sub(r"\s+#.*", "", line) for line in lines if line.startswith(start)]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def from_root(command: str) -> list[str]:
    return [str(ROOT / part) if part.startswith("configs/") else part for part in shlex.split(command)]


def test_readme_fits_on_a_few_screens() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= MOST_README_LINES


def test_glossary_has_few_sorted_terms() -> None:
    terms = re.findall(r"^\| ([^|]+) \|", TEXTS["docs/glossary.md"], flags=re.MULTILINE)[1:]
    assert terms == sorted(terms)
    assert len(terms) <= MOST_TERMS


def test_settings_page_is_up_to_date() -> None:
    written = read_section(settings_table.PAGE, settings_table.SECTION)
    assert written == settings_table.settings_table(), "run `python -m flows.settings_table`"


def test_performance_page_shows_the_last_measurement() -> None:
    written = read_section(speed.PAGE, speed.SECTION)
    assert written == speed.section(Measurements.load(speed.RESULTS)), "run `python -m benchmarks --render`"


def test_reliability_page_shows_the_last_measurement() -> None:
    measured = json.loads(faults.RESULTS.read_text(encoding="utf-8"))
    written = read_section(faults.PAGE, faults.SECTION)
    assert written == faults.faults_table(measured), "run `python -m benchmarks.faults --render`"
    counted = read_section(chaos.PAGE, chaos.SECTION)
    assert counted == table(chaos.read_results(), chaos.NAMES), "run `python -m benchmarks.chaos --render`"


def test_evaluation_page_shows_the_last_simulation() -> None:
    written = read_section(gate.PAGE, gate.SECTION)
    assert written == gate.section(*gate.load()), "run `python -m benchmarks.gate --render`"


def test_performance_page_shows_the_last_steps_on_a_gpu() -> None:
    written = read_section(gpu_page.PAGE, gpu_page.SECTION)
    assert written == gpu_page.section(gpu_page.load()), "run `python -m benchmarks.gpu_page`"


def test_evaluation_page_shows_the_last_adapters() -> None:
    written = read_section(gate_adapters.PAGE, gate_adapters.SECTION)
    assert written == gate_adapters.section(gate_adapters.load()), "run `python -m benchmarks.gate_adapters --render`"


def test_real_rows_of_the_page_are_the_measured_ones() -> None:
    written = read_section(real_rows_page.PAGE, real_rows_page.SECTION)
    expected = real_rows_page.section(real_rows_page.load(real_rows_page.RESULTS))
    assert written == expected, "run `python -m benchmarks.real_rows_page`"


def test_using_page_shows_the_last_predictions() -> None:
    written = read_section(prediction.PAGE, prediction.SECTION)
    assert written == prediction.section(prediction.load()), "run `python -m benchmarks.predict --render`"


def test_evaluation_page_explains_every_column() -> None:
    explained = re.findall(r"^\| ([^|]+) \|", TEXTS["docs/evaluation.md"], flags=re.MULTILINE)
    some = SimpleNamespace(**{field.name: 1 for field in dataclasses.fields(Scores)})
    assert set(score_grid({"base": some}).head) - {""} <= set(explained)  # type: ignore[dict-item]


@pytest.mark.slow
def test_readme_shows_what_the_demo_prints() -> None:
    """Titles, headings, row labels and closing lines; a short training gives other figures."""
    printed = demo_output.shortened(demo_output.run_demo(["--max_steps", "1", "--eval_max_new_tokens", "1"]))
    written = read_section(README, demo_output.SECTION).removeprefix("```\n").removesuffix("```\n")
    assert demo_output.layout(written) == demo_output.layout(printed), "run `python -m flows.demo_output`"


def test_generated_sections_name_commands_that_exist() -> None:
    named = re.findall(r"<!-- \w+:begin written by `([^`]+)` -->", EVERYTHING)
    assert len(named) == EVERYTHING.count(":begin") >= 4
    for command in named:
        assert f"`{command}`" in re.sub(r"<!--.*?-->", "", EVERYTHING), f"no text says that {command} writes a section"


@pytest.mark.parametrize("name", ["check", "run", "demo", "ui"])
def test_sft_flow_commands_in_the_docs_are_accepted(name: str) -> None:
    found = commands(f"sft-flow {name}")
    assert found or name == "demo"
    for command in found:
        _, _, *arguments = from_root(command)
        read_settings(config_from_command_line(arguments, command, takes_rows=name == "check"))


def test_sft_flow_commands_are_all_documented() -> None:
    names = set(re.findall(r"^ *sft-flow (\w+)", cli.USAGE, flags=re.MULTILINE))
    assert {"check", "run", "demo", "ui"} <= names
    assert names <= {*re.findall(r"sft-flow (\w+)", EVERYTHING), *re.findall(r"make (\w+)", EVERYTHING)}


def test_sft_flow_commands_in_shell_blocks_exist() -> None:
    names = {command.split()[1] for command in commands("sft-flow ")}
    assert names <= set(re.findall(r"^ *sft-flow (\w+)", cli.USAGE, flags=re.MULTILINE))


def test_predict_commands_in_the_docs_are_accepted() -> None:
    found = commands("sft-flow predict ")
    assert found
    for command in found:
        assert predict_cli.parser().parse_args(shlex.split(command)[2:]).uri.startswith("models:/")


def test_plain_script_commands_in_the_docs_are_accepted() -> None:
    found = commands("python train_qlora_sft.py ")
    assert found
    for command in found:
        read_settings(config_from_command_line(from_root(command)[2:], command))


def test_modules_in_the_docs_exist() -> None:
    modules = set(re.findall(r"python -m\s([\w.]+)", EVERYTHING)) - {"pip"}
    assert {"flows.demo_output", "benchmarks.faults", "benchmarks.gpu"} <= modules
    for module in modules:
        assert importlib.util.find_spec(module), module


def test_make_targets_in_the_docs_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {*re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE), ".venv/.installed"}
    named = set(re.findall(r"(?:^|`)make ((?:[a-z]+|\.venv/\.installed)(?: [a-z]+)*)", EVERYTHING, flags=re.MULTILINE))
    assert {"demo", "test"} <= named
    assert {target for command in named for target in command.split()} <= targets


def test_readme_activates_the_environment_before_sft_flow() -> None:
    lines = [line for block in code_blocks(TEXTS["README.md"], "") for line in block.split("\n")]
    first = next(place for place, line in enumerate(lines) if line.startswith("sft-flow "))
    assert lines.index("source .venv/bin/activate") < first


def test_deployments_in_the_docs_exist() -> None:
    known = {f"{found.flow_name}/{found.name}": found for found in deployments("rows.jsonl")}
    table = re.findall(r"`([a-z]+-flow/[a-z]+)`", EVERYTHING)
    assert known.keys() <= set(table)
    assert set(table) <= known.keys()
    for command in commands("prefect deployment run "):
        _, _, _, name, *rest = shlex.split(command)
        given = {part.split("=")[0] for flag, part in itertools.pairwise(rest) if flag == "-p"}
        flow = {flow.name: flow for flow in (sft_flow, reevaluate_flow, predict_flow)}[name.partition("/")[0]]
        assert given <= flow.parameters.properties.keys(), command


def test_pools_and_events_in_the_docs_exist() -> None:
    named = {re.findall(r"--pool (\w+)", command)[0] for command in commands("prefect worker start ")}
    assert named == {pool.name for pool in pools("process")}
    assert {command.split()[3] for command in commands("prefect event emit ")} == {ROWS_UPDATED}


def test_settings_in_tables_exist() -> None:
    tables = re.findall(r"^\| setting \|.*\n\|[-|:]+\n((?:\|.*\n)+)", EVERYTHING, flags=re.MULTILINE)
    names = {name for table in tables for name in re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)}
    assert names == settings_info().keys()


def test_docs_name_only_environment_variables_of_the_code() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py") if ".venv" not in path.parts)
    compose = (ROOT / "deployments" / "compose.yaml").read_text(encoding="utf-8")
    for name in set(re.findall(r"SFT_FLOW_\w+", EVERYTHING)):
        assert name in code + compose, name


@each_page
def test_links_and_pictures_resolve(page: Path) -> None:
    for target in re.findall(
        r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    ):
        if not target.startswith(("http://", "https://")):
            path, _, anchor = target.partition("#")
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(linked), f"{page.name}: {target}"


def test_readme_links_every_page() -> None:
    linked = {
        (ROOT / target.partition("#")[0]).resolve() for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS["README.md"])
    }
    assert set(PAGES) - {README} <= linked


def test_security_page_has_a_test_or_a_limit_for_each_sentence() -> None:
    rows = re.findall(r"^\| (.+) \| (.+) \|$", (ROOT / "SECURITY.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    held = {what: by for what, by in rows if what != "what"}
    assert len(held) >= 15
    for what, by in held.items():
        files = re.findall(r"`(tests/[\w/.]+)`", by)
        assert bool(files) != what.startswith("Limit"), what
        for file in files:
            assert "def test_" in (ROOT / file).read_text(encoding="utf-8"), file


def test_pictures_are_all_shown() -> None:
    shown = set(re.findall(r"!\[[^\]]+\]\((?:docs/)?([\w.]+)\)", EVERYTHING))
    assert shown == {path.name for path in DOCS.iterdir() if path.suffix in (".png", ".svg")}


def test_file_map_names_what_exists() -> None:
    (section,) = re.findall(
        r"^## Where things are in the code\n(.*?)^How to change", TEXTS["README.md"], re.DOTALL | re.M
    )
    (block,) = code_blocks(section, "")
    for line in block.splitlines():
        if line.startswith(" " * 20):  # goes on with the line above
            text = line
        else:
            name, text = re.split(r"\s{2,}", line.strip(), maxsplit=1)
            place = (ROOT / "training_core" if line.startswith("  ") else ROOT) / name
        assert place.exists(), name
        for file in re.findall(r"\b(\w+\.py)\b", text):
            assert (place / file).is_file(), f"{name}: {file}"


@pytest.mark.parametrize("block", code_blocks(EVERYTHING, "python"), ids=lambda block: block.split("\n")[0])
def test_python_blocks_import_what_exists(block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names), node.module


def test_headings_in_messages_exist() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "training_core").rglob("*.py"))
    for heading in re.findall(r"see '([^']+)' in the README", code):
        assert f"## {heading}\n" in TEXTS["README.md"], heading
