"""What a run of a deployment may read, write and import: its parameters come over the API, from whoever reaches that.

A run that a person starts at the command line may do what that person may.
"""

import os
import posixpath
from pathlib import Path
from urllib.parse import unquote

from fsspec.core import split_protocol, strip_protocol
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext

from tasks.artifact_store import VARIABLE as STORE
from tasks.refs import DatasetRef
from training_core.base_model import PROJECT, base_folder
from training_core.config import RunConfig, SettingsError
from training_core.rows.files import client_errors_as_os_errors
from training_core.rows.locate import find_files

ROOTS, FUNCTIONS = "SFT_FLOW_ALLOWED_ROOTS", "SFT_FLOW_ALLOWED_FUNCTIONS"  # each separated by commas

_ROWS, _FOLDERS, _CODE = ("dataset_path", "eval_path"), ("output_dir", "cache_dir"), ("label_audit", "answer_audit")
_MANY_FILES = (*_ROWS, "rows")  # a folder or a glob, with links in it
_LOCAL = (None, "file", "local")


def require_allowed(config: RunConfig, dataset: DatasetRef | None = None, **places: str) -> None:
    """Raise ``SettingsError`` when a run of a deployment has a path outside the allowed roots, or code by a name that
    is not allowed. ``places`` are the paths among its other parameters, by their names.

    Both are said by the environment of the worker, which no parameter changes, and no job variable of the run may
    change. Links are followed first. The folder of the worker and the artifact store are always allowed. Imports
    nothing and reads no row.
    """
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None or run.deployment_id is None:
        return
    given = vars(config)
    read = _FOLDERS if dataset else (*_ROWS, *_FOLDERS)  # with a dataset, rows are not read again
    paths = {name: given[name] for name in read if given[name]} | places
    if base_folder(config.model_name):
        paths["model_name"] = str(base_folder(config.model_name))
    if dataset and dataset.folder.url:
        paths["dataset"] = dataset.folder.url
    problems = [_outside(name, path) for name, path in paths.items() if not _is_allowed(name, path)]
    allowed = _listed(FUNCTIONS)
    problems += [_not_named(name, given[name]) for name in _CODE if given[name] and given[name] not in allowed]
    problems += [
        "job_variables: a run may not change its environment; set env of its deployment"
    ] * _changes_environment(run)
    if problems:
        raise SettingsError(problems)


def _changes_environment(run: FlowRun) -> bool:
    """Whether the run came with job variables of its own that set environment variables: Prefect merges those into
    the pool's."""
    return any(name == "env" or name.startswith("env.") for name in run.job_variables or {})


def _outside(name: str, path: str) -> str:
    fix = f"whoever runs the worker can add a root to its {ROOTS}"
    return f"{name}: expected a path in the worker's folder, the artifact store or {ROOTS}, got {path!r}; {fix}"


def _not_named(name: str, function: str) -> str:
    return f"{name}: {function!r} is not in {FUNCTIONS}; whoever runs the worker can add it, and its code is imported"


def _listed(variable: str) -> list[str]:
    return [entry.strip() for entry in os.environ.get(variable, "").split(",") if entry.strip()]


def _is_allowed(name: str, path: str) -> bool:
    roots = [str(Path.cwd()), *([str(PROJECT)] if name == "model_name" else []), *_listed(ROOTS)]
    roots += [os.environ[STORE]] if os.environ.get(STORE) else []
    if not _is_within(path, roots):
        return False
    return name not in _MANY_FILES or all(_is_within(file, roots) for file in _files(path))


def _files(path: str) -> list[str]:
    """The files that a path of rows means, which may be links; none where they cannot be listed: what reads them will
    say why."""
    try:
        with client_errors_as_os_errors():
            return find_files(path)
    except (OSError, ValueError, ImportError):
        return []


def _is_within(path: str, roots: list[str]) -> bool:
    place = _place(path)
    return place is not None and any(
        place == root or place.startswith(f"{root.rstrip('/')}/") for root in map(_place, roots) if root
    )


def _place(path: str) -> str | None:
    """An address in one spelling, links followed; ``None`` for one that may lead elsewhere: chained, or with ``..``."""
    protocol, rest = split_protocol(path)
    if "::" in path:
        return None
    if protocol in _LOCAL:
        return str(Path(strip_protocol(path)).resolve())  # file:/etc is a path, too
    host, _, below = rest.partition("/")
    below = unquote(below)
    if below.strip("/") and posixpath.normpath(below.strip("/")) != below.strip("/").replace("//", "/"):
        return None
    return f"{protocol}://{host.lower()}/{below.strip('/')}".rstrip("/")
