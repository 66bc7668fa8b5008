"""Whether the servers of the environment answer; asked before anything starts, since clients retry for minutes."""

import contextlib
import json
import os
import re
import time
from http import HTTPStatus
from importlib.metadata import entry_points
from pathlib import Path

import httpx

from tasks.databases import database_problem
from training_core.escaping import without_secrets

PREFECT, MLFLOW = "PREFECT_API_URL", "MLFLOW_TRACKING_URI"
_SECONDS = 5
_LOGINS = {
    PREFECT: "PREFECT_API_AUTH_STRING=USER:PASSWORD",
    MLFLOW: "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
}
_ASKED = {PREFECT: "/admin/version", MLFLOW: "/api/2.0/mlflow/experiments/get?experiment_id=0"}  # health asks no login
_EXPECTED = {PREFECT: "http://HOST:PORT/api", MLFLOW: "http://HOST:PORT"}
_KINDS = {PREFECT: "Prefect's API", MLFLOW: "an MLflow server"}
_PLAIN_ANSWERS = (HTTPStatus.OK, HTTPStatus.NOT_FOUND)  # a guard sends others, or elsewhere: only the client passes it
_OTHER_LOGINS = {
    PREFECT: ("PREFECT_API_KEY", "PREFECT_CLIENT_CUSTOM_HEADERS"),
    MLFLOW: ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_CLIENT_CERT_PATH"),
}
_MLFLOW_HEADERS = "mlflow.request_header_provider"  # plugins that add headers to requests
_STARTED = "start the server, correct the address, or unset the variable to use this machine"


def server_problems(*names: str) -> list[str]:
    """One line for each server of these variables, ``PREFECT`` and ``MLFLOW`` when none is named, that does not answer
    as one within seconds, or does not accept the login of the environment.

    An empty variable counts as unset. A proxy that no client can use is the only problem.
    """
    if problem := _proxy_problem():
        return [problem]
    addresses = {name: os.environ.get(name, "") for name in names or (PREFECT, MLFLOW)}
    return [problem for name, address in addresses.items() if address and (problem := _named_problem(name, address))]


def require_answers(*names: str) -> None:
    """Raise ``ConnectionError`` when a server of these variables is away: it does not answer, or says that it cannot
    now. Other problems are left to ``server_problems``."""
    if not _proxy_problem():
        for name in names:
            _problem(name, os.environ.get(name, ""))


def _named_problem(name: str, address: str) -> str:
    try:
        problem = _problem(name, address)
    except ConnectionError as error:
        return str(error)
    return _named(name, address, problem) if problem else ""


def _named(name: str, address: str, problem: str) -> str:
    return f"{name}: {_hidden(address)}: {problem}"


def _proxy_problem() -> str:
    """Why the proxies of the environment cannot be used. Clients look at all of them, also on the way to a server on
    this machine, which none of them is used for."""
    try:
        httpx.Client().close()
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        return f"HTTP_PROXY, HTTPS_PROXY, ALL_PROXY or NO_PROXY: {_hidden(str(error))}; or unset that variable"
    return ""


def _problem(name: str, address: str) -> str:
    """Raises ``ConnectionError`` when an HTTP server is away."""
    if re.match("https?://", address, re.IGNORECASE):
        if without_secrets(address) != address:
            return f"expected an address without a login; set {_LOGINS[name]} instead"
        return _http_problem(name, address)
    if name == PREFECT or re.fullmatch(r"[\w.-]+:\d+/?", address):
        return f"expected {_EXPECTED[name]}, got another address; {_STARTED}"
    problem = database_problem(address, _SECONDS)
    return f"{problem}; {_STARTED}" if problem else ""


def _http_problem(name: str, address: str) -> str:
    try:
        found = _ask(name, address)
    except (httpx.RequestError, OverflowError) as error:
        if "certificate" in str(error).lower() and _has_other_certificates(name):
            return ""  # only the client itself knows what it trusts
        raise ConnectionError(_named(name, address, f"no answer ({error}); {_STARTED}")) from error
    except httpx.InvalidURL:
        return f"expected {_EXPECTED[name]}, got another address; {_STARTED}"
    status = f"{found.status_code} {found.reason_phrase}".strip()
    if found.is_server_error or found.status_code == HTTPStatus.TOO_MANY_REQUESTS:
        away = f"the server answers {status!r}; wait until it works again, or correct the address"
        raise ConnectionError(_named(name, address, away))
    if _has_other_login(name) or found.status_code == HTTPStatus.FORBIDDEN:
        return ""  # only the client itself can say more
    if found.status_code == HTTPStatus.UNAUTHORIZED:
        return f"the server does not accept the login; set {_LOGINS[name]}"
    if not found.history and found.status_code in _PLAIN_ANSWERS and not _is_answer_of(name, found.text):
        return f"expected {_KINDS[name]} at {_EXPECTED[name]}, got {status!r} from another server; {_STARTED}"
    return ""


def _ask(name: str, address: str) -> httpx.Response:
    """The answer to a question that reads nothing of anybody; it must be complete in time."""
    deadline = time.monotonic() + _SECONDS
    url = f"{address.rstrip('/')}{_ASKED[name]}"
    with httpx.stream("GET", url, auth=_login(name), timeout=_SECONDS, follow_redirects=True) as found:
        content = b""
        for part in found.iter_raw():
            content += part
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout("timed out")
    return httpx.Response(found.status_code, content=content, headers=found.headers, history=found.history)


def _is_answer_of(name: str, text: str) -> bool:
    try:
        found = json.loads(text)
    except ValueError:
        return False
    if name == PREFECT:
        return isinstance(found, str)
    return isinstance(found, dict) and bool({"experiment", "error_code"} & found.keys())


def _login(name: str) -> tuple[str, str] | None:
    """User and password of the environment, in the clients' own variables."""
    if name == PREFECT:
        user, _, password = os.environ.get("PREFECT_API_AUTH_STRING", "").partition(":")
    else:
        user, password = (os.environ.get(f"MLFLOW_TRACKING_{part}", "") for part in ("USERNAME", "PASSWORD"))
    return (user, password) if user else None


def _has_other_login(name: str) -> bool:
    """Whether only the client itself can say if its login is right: a token, a certificate, one of a file or plugin."""
    in_file = name == MLFLOW and not _login(name) and _credentials_file().is_file()
    by_plugin = name == MLFLOW and bool(entry_points(group=_MLFLOW_HEADERS))
    return in_file or by_plugin or any(os.environ.get(variable) for variable in _OTHER_LOGINS[name])


def _credentials_file() -> Path:
    with contextlib.suppress(RuntimeError):  # a user without a home folder
        return Path.home() / ".mlflow" / "credentials"
    return Path()


def _has_other_certificates(name: str) -> bool:
    """Whether the client may trust servers that this process does not."""
    variables = ("PREFECT_API_TLS_INSECURE_SKIP_VERIFY", "PREFECT_API_SSL_CERT_FILE")
    return name == MLFLOW or any(os.environ.get(variable) for variable in variables)


def _hidden(address: str) -> str:
    """The address without user and password, whatever else is wrong with it."""
    return re.sub(r"//.*@", "//***@", address)
