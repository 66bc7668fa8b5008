"""A registered model asks for every package that its code imports."""

import ast
import contextlib
import importlib.metadata
import re
import sys
from pathlib import Path

from tasks.model_package import SERVED_BY

ROOT = Path(__file__).parents[2]


def imported_packages() -> set[str]:
    """The top-level names that the packaged code imports."""
    files = [ROOT / "tasks" / "served_adapter.py", *(ROOT / "training_core").rglob("*.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"training_core", "tasks"}


def with_dependencies(packages: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    left = list(packages)
    while left:
        name = left.pop().lower().replace("_", "-")
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # for other versions of Python
            needed = importlib.metadata.requires(name) or () if name not in found else ()
            found.add(name)
            left += [re.split(r"[^\w.-]", text)[0] for text in needed if "extra ==" not in text]
    return found


def test_registered_model_requires_what_its_code_imports() -> None:
    installed = importlib.metadata.packages_distributions()
    required = with_dependencies(SERVED_BY)
    missing = {
        name
        for name in imported_packages()
        if not {d.lower().replace("_", "-") for d in installed.get(name, [name])} & required
    }
    others = {"trl", "matplotlib", "psutil", "sacrebleu", "fsspec", "gguf", "llama_cpp", "httpx"}
    assert missing <= others, "only training, evaluation, predict and export import these"
