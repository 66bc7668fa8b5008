"""Imports go one way: deployments → flows → tasks → training_core ← samples; benchmarks import from all."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "training_core": set(),
    "samples": {"training_core"},
    "benchmarks": {"training_core", "samples", "tasks", "flows", "deployments"},
    "tasks": {"training_core"},
    "flows": {"training_core", "samples", "tasks"},
    "deployments": {"training_core", "samples", "tasks", "flows"},
}
# Inside training_core, lowest first: a module imports from its own package and from those before it.
ORDER = (
    *(
        "escaping",
        "pages",
        "config",
        "child_processes",
        "error_causes",
        "folders",
        "base_model",
        "base_weights",
        "base_support",
        "grid",
        "code_digest",
        "rows",
        "user_functions",
        "prompts",
        "utils",
        "model_setup",
        "dataset",
        "packing",
    ),
    *("data_loader", "training", "trainer", "distributed", "evaluation", "prediction", "export"),
)
MLFLOW_IMPORTERS = {
    "tasks/create_once.py",
    "tasks/leftovers.py",
    "tasks/ledger.py",
    "tasks/registry.py",
    "tasks/tracking.py",
    "tasks/versions.py",
    "tasks/model_package.py",
    "tasks/served_adapter.py",
    "tasks/check_served.py",
}


def modules_of(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """Top-level names of all imports of a module, those inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide which package is imported"
            found.add(str(node.module).partition(".")[0])
    return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_packages_import_only_from_packages_below(room: str) -> None:
    modules = modules_of(room)
    assert modules
    for module in modules:
        other_rooms = imports_of(module) & MAY_IMPORT.keys() - {room}
        assert other_rooms <= MAY_IMPORT[room], f"{module.relative_to(ROOT)} imports {other_rooms - MAY_IMPORT[room]}"


def core_package(module: str) -> str:
    """The package, or top-level module, of a dotted name in training_core."""
    return module.removeprefix("training_core.").partition(".")[0]


def test_core_packages_import_in_their_order() -> None:
    rooms = {path.stem for path in (ROOT / "training_core").iterdir() if path.stem not in ("__init__", "__pycache__")}
    assert rooms <= {*ORDER, "README"}, "add a new package to ORDER"
    for path in modules_of("training_core"):
        own = core_package(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("training_core"):
                imported = [node.module] if node.module != "training_core" else [alias.name for alias in node.names]
                for package in map(core_package, map(str, imported)):
                    assert ORDER.index(package) <= ORDER.index(own), f"{path.relative_to(ROOT)} imports {package}"


def test_core_packages_have_a_docstring_and_no_exports() -> None:
    for path in (ROOT / "training_core").glob("*/__init__.py"):
        (sentence,) = ast.parse(path.read_text(encoding="utf-8")).body
        assert isinstance(sentence, ast.Expr), path


@pytest.mark.parametrize("room", ["training_core", "samples", "benchmarks"])
def test_core_imports_no_prefect_and_no_mlflow(room: str) -> None:
    for module in [*modules_of(room), ROOT / "train_qlora_sft.py"]:
        assert not imports_of(module) & {"prefect", "mlflow"}, module


def test_script_imports_only_the_core() -> None:
    assert imports_of(ROOT / "train_qlora_sft.py") & MAY_IMPORT.keys() == {"training_core"}


def test_mlflow_is_imported_in_few_modules() -> None:
    importers = {
        module.relative_to(ROOT).as_posix()
        for room in MAY_IMPORT
        for module in modules_of(room)
        if "mlflow" in imports_of(module)
    }
    assert importers <= MLFLOW_IMPORTERS


def test_dependencies_are_all_declared() -> None:
    """A package that only another one depends on may be missing after an update."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {room: [*project["dependencies"]] for room in MAY_IMPORT}
    needed["benchmarks"] += [line for extra in project["optional-dependencies"].values() for line in extra]
    needed["benchmarks"] += ["triton"]  # comes with torch for CUDA
    needed["training_core"] += project["optional-dependencies"]["gguf"]  # imported where they are asked for
    distributions = importlib.metadata.packages_distributions() | {"llama_cpp": ["llama-cpp-python"]}
    for room, lines in needed.items():
        declared = {re.split(r"[<>=\[;]", line)[0].lower().replace("_", "-") for line in lines}
        for module in modules_of(room):
            for name in imports_of(module) - MAY_IMPORT.keys() - sys.stdlib_module_names:
                brought_by = {found.lower().replace("_", "-") for found in distributions.get(name, [name])}
                assert brought_by & declared, f"{module.relative_to(ROOT)} imports {name}"


def test_module_names_hide_no_installed_package() -> None:
    installed = {
        name
        for name, distributions in importlib.metadata.packages_distributions().items()
        if set(distributions) != {"sft-flow"}
    }
    for room in MAY_IMPORT:
        names = {room, *(module.stem for module in modules_of(room)), *(m.parent.name for m in modules_of(room))}
        assert not names & installed, room
        assert not names & sys.stdlib_module_names, room
