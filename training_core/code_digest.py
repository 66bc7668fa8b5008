"""The code that a result depends on, as one digest: the code part of every cache key."""

import ast
import hashlib
import inspect
from collections.abc import Collection, Iterator
from importlib import import_module
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def code_digest(entry: str, without: Collection[str] = ()) -> str:
    """SHA-256 over a module of the project and all modules of the project that it imports, directly or indirectly.

    ``without`` names modules and packages whose effect the caller's key holds already: settings by their values, rows
    and adapters by their digests. Comments, docstrings and formatting do not count. A file next to a module and with
    its name, such as the template of a page, counts.

        code_digest("training_core.trainer", without=["training_core.config"])
        → trainer, packing.plan, packing.batches, training.journal, …, but not config
    """
    digest = hashlib.sha256()
    for module in sorted(_reachable(entry, tuple(without))):
        path = _file(module)
        digest.update(module.encode())
        digest.update(_meaning(path.read_text(encoding="utf-8")).encode())
        for companion in sorted(path.parent.glob(f"{path.stem}.*")):
            digest.update(b"" if companion.suffix in (".py", ".pyc") else companion.read_bytes())
    return digest.hexdigest()


def function_files(function: str) -> list[Path]:
    """The files of the module or the whole package that a function ``module:name`` is in, sorted."""
    home = Path(inspect.getfile(import_module(function.partition(":")[0].partition(".")[0])))
    files = home.parent.rglob("*") if home.name == "__init__.py" else [home]
    return sorted(path for path in files if path.is_file() and "__pycache__" not in path.parts)


def function_digest(function: str | None) -> str:
    """SHA-256 over ``function_files``; empty where no function is named."""
    parts = [hashlib.sha256(path.read_bytes()).digest() for path in function_files(function)] if function else []
    return hashlib.sha256(b"".join(parts)).hexdigest() if function else ""


def _reachable(entry: str, without: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    left = [entry]
    while left:
        module = left.pop()
        covered = any(module == name or module.startswith(f"{name}.") for name in without)
        if module not in found and not covered and _file(module).is_file():
            found.add(module)
            left += _imports(_file(module))
    return found


def _imports(path: Path) -> Iterator[str]:
    """Names that a file imports; some are not modules of the project, which the caller ignores."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _file(module: str) -> Path:
    return PROJECT.joinpath(*module.split(".")).with_suffix(".py")


def _meaning(source: str) -> str:
    """The syntax tree as text, without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [line for line in node.body if not _is_text(line)] or [ast.Pass()]
    return ast.dump(tree)


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)
