"""Whether the servers of the environment answer; asked before anything starts, since clients retry for minutes."""

import os
import re
import socket

import httpx
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

PREFECT, MLFLOW = "PREFECT_API_URL", "MLFLOW_TRACKING_URI"
_SECONDS = 5
_FIX = "start the server, correct the address, or unset the variable to use this machine"


def server_problems() -> list[str]:
    """One line for each server of ``PREFECT_API_URL`` and ``MLFLOW_TRACKING_URI`` that does not answer within seconds.

    An empty variable counts as unset. An answer of any status is an answer.
    """
    addresses = {name: os.environ.get(name, "") for name in (PREFECT, MLFLOW)}
    problems = {name: _problem(address) for name, address in addresses.items() if address}
    return [f"{name}: {_safe(addresses[name])}: {problem}; {_FIX}" for name, problem in problems.items() if problem]


def _problem(address: str) -> str:
    if address.startswith("http://"):
        return _http_problem(address)
    try:
        url = make_url(address)
    except (ArgumentError, ValueError):  # a folder, or databricks://…, which MLflow itself reads
        return ""
    return _database_problem(url) if url.host else ""


def _http_problem(address: str) -> str:
    try:
        httpx.get(address, timeout=_SECONDS)
    except (httpx.TransportError, OverflowError) as error:
        return f"no answer ({error})"
    except httpx.InvalidURL:
        return "expected http://HOST:PORT, got another address"
    return ""


def _database_problem(url: URL) -> str:
    if url.drivername == "https":  # without a request: only the servers' clients know which certificates they trust
        return _connection_problem(url)
    try:
        dialect = url.get_dialect()
        dialect.import_dbapi()
    except NoSuchModuleError:
        return ""  # not a database: MLflow knows more kinds of stores
    except ImportError as error:
        return f"the driver is not installed ({error})"
    return _connection_problem(url)


def _connection_problem(url: URL) -> str:
    try:
        with socket.create_connection((url.host, url.port or _default_port(url)), timeout=_SECONDS):
            return ""
    except (OSError, OverflowError) as error:
        return f"no answer ({error})"


def _default_port(url: URL) -> int:
    return {"https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}.get(url.get_backend_name(), 0)


def _safe(address: str) -> str:
    """The address without user and password, whatever else is wrong with it."""
    return re.sub(r"//.*@", "//***@", address)
