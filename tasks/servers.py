"""Whether the servers of the environment answer; asked before anything starts, since clients retry for minutes."""

import os
import re
import socket
from http import HTTPStatus
from pathlib import Path

import httpx
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from training_core.escaping import without_secrets

PREFECT, MLFLOW = "PREFECT_API_URL", "MLFLOW_TRACKING_URI"
_SECONDS = 5
_LOGINS = {
    PREFECT: "PREFECT_API_AUTH_STRING=USER:PASSWORD",
    MLFLOW: "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
}
_ASKED = {PREFECT: "/admin/version", MLFLOW: "/api/2.0/mlflow/experiments/get?experiment_id=0"}  # health asks no login
_STARTED = "start the server, correct the address, or unset the variable to use this machine"


def server_problems() -> list[str]:
    """One line for each server of ``PREFECT_API_URL`` and ``MLFLOW_TRACKING_URI`` that does not answer within seconds,
    or does not accept the login of the environment.

    An empty variable counts as unset. An answer of any other status is an answer.
    """
    addresses = {name: os.environ.get(name, "") for name in (PREFECT, MLFLOW)}
    problems = {name: _problem(name, address) for name, address in addresses.items() if address}
    return [f"{name}: {_hidden(addresses[name])}: {problem}" for name, problem in problems.items() if problem]


def _problem(name: str, address: str) -> str:
    if address.startswith("http") and without_secrets(address) != address:
        return f"expected an address without a login; set {_LOGINS[name]} instead"
    if address.startswith("http://"):
        return _http_problem(name, address)
    try:
        url = make_url(address)
    except (ArgumentError, ValueError):  # a folder, or databricks://…, which MLflow itself reads
        return ""
    return _database_problem(url) if url.host else ""


def _http_problem(name: str, address: str) -> str:
    try:
        found = httpx.get(f"{address.rstrip('/')}{_ASKED[name]}", auth=_login(name), timeout=_SECONDS)
    except (httpx.TransportError, OverflowError) as error:
        return f"no answer ({error}); {_STARTED}"
    except httpx.InvalidURL:
        return f"expected http://HOST:PORT, got another address; {_STARTED}"
    if found.status_code != HTTPStatus.UNAUTHORIZED or _has_other_login(name):
        return ""
    return f"the server does not accept the login; set {_LOGINS[name]}"


def _login(name: str) -> tuple[str, str] | None:
    """User and password of the environment, in the clients' own variables."""
    if name == PREFECT:
        user, _, password = os.environ.get("PREFECT_API_AUTH_STRING", "").partition(":")
    else:
        user, password = (os.environ.get(f"MLFLOW_TRACKING_{part}", "") for part in ("USERNAME", "PASSWORD"))
    return (user, password) if user else None


def _has_other_login(name: str) -> bool:
    """Whether only the client itself can say if its login is right: a token, or one of a file."""
    variables = ("PREFECT_API_KEY",) if name == PREFECT else ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_AUTH")
    in_file = name == MLFLOW and not _login(name) and (Path.home() / ".mlflow" / "credentials").is_file()
    return in_file or any(os.environ.get(variable) for variable in variables)


def _database_problem(url: URL) -> str:
    if url.drivername == "https":  # without a request: only the servers' clients know which certificates they trust
        return _connection_problem(url)
    try:
        dialect = url.get_dialect()
        dialect.import_dbapi()
    except NoSuchModuleError:
        return ""  # not a database: MLflow knows more kinds of stores
    except ImportError as error:
        return f"the driver is not installed ({error}); {_STARTED}"
    return _connection_problem(url)


def _connection_problem(url: URL) -> str:
    try:
        with socket.create_connection((url.host, url.port or _default_port(url)), timeout=_SECONDS):
            return ""
    except (OSError, OverflowError) as error:
        return f"no answer ({error}); {_STARTED}"


def _default_port(url: URL) -> int:
    return {"https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}.get(url.get_backend_name(), 0)


def _hidden(address: str) -> str:
    """The address without user and password, whatever else is wrong with it."""
    return re.sub(r"//.*@", "//***@", address)
