"""Questions to an OpenAI-compatible endpoint, asked as a client asks that says nothing about decoding."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from training_core.config import SettingsError
from training_core.escaping import on_one_line

KEY_VARIABLE = "OPENAI_API_KEY"
Messages = Sequence[Mapping[str, str]]

_REACH_SECONDS, _ANSWER_SECONDS = 10.0, 180.0  # to say what it serves, and to answer one question
_ATTEMPTS, _WAIT_SECONDS = 3, 1.0
_TRANSIENT = (429, 502, 503, 504)
_MOST_BYTES = 16 * 2**20
_LONGEST = 200  # characters of what an endpoint says


@dataclass(frozen=True)
class Reply:
    """An answer as it came: tokens as the runtime counts them (``None``: it does not say), and the seconds it took.

    ``reasoning`` is what a server has taken out of the answer as thinking.
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    reasoning: str = ""
    seconds: float = 0.0


# A question and the longest answer in tokens (``None``: not said) become a reply.
Ask = Callable[[Messages, int | None], Reply]


@dataclass(frozen=True)
class Endpoint:
    """A model at an address that ends with ``/v1``; ``extra`` is sent with every question."""

    address: str
    model: str
    extra: Mapping[str, Any]
    client: httpx.Client

    def ask(self, messages: Messages, max_tokens: int | None) -> Reply:
        """Ask one question. Raises ``SettingsError`` when there is no answer, or none in the protocol's form."""
        limit = {} if max_tokens is None else {"max_tokens": max_tokens}
        body = {"model": self.model, "messages": list(messages), **limit, **self.extra}
        started = time.monotonic()
        found = _call(self.client, "POST", f"{self.address}/chat/completions", _ANSWER_SECONDS, body)
        return _read_reply(found, self.address, time.monotonic() - started)


@contextlib.contextmanager
def open_endpoint(url: str, model: str | None, extra: Mapping[str, Any]) -> Iterator[Endpoint]:
    """The endpoint at a URL, asked first what it serves; closed at the end.

    Without ``model`` it must serve exactly one. The key is read from the environment and sent to this host alone:
    redirects are not followed. Raises ``SettingsError`` within seconds when nothing answers.
    """
    address = _address(url)
    with httpx.Client(headers=_headers(), follow_redirects=False) as client:
        served = _served_models(client, address)
        yield Endpoint(address, model or _only(served, address), extra, client)


def _address(url: str) -> str:
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise SettingsError([f"URL: expected an address such as http://HOST:8000/v1: {error}, got {url!r}"]) from error
    if parts.userinfo or parts.query or parts.scheme not in ("http", "https") or not parts.host:
        what = "expected an address such as http://HOST:8000/v1, without a password or query"
        raise SettingsError([f"URL: {what}; a key is read from {KEY_VARIABLE}"])
    path = parts.path.rstrip("/").removesuffix("/chat/completions").removesuffix("/v1")
    return f"{str(parts.copy_with(path='/')).rstrip('/')}{path}/v1"


def _headers() -> dict[str, str]:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and (key.isprintable() or not key)):
        raise SettingsError([f"{KEY_VARIABLE}: has characters that no HTTP header can carry; set it again"])
    return {"Authorization": f"Bearer {key}"} if key else {}


def _served_models(client: httpx.Client, address: str) -> list[str]:
    """The names that the endpoint lists; none where it keeps no list."""
    try:
        found = _call(client, "GET", f"{address}/models", _REACH_SECONDS, listed=True)
        return [str(entry["id"]) for entry in found["data"]]
    except (LookupError, TypeError):
        return []


def _only(served: Sequence[str], address: str) -> str:
    if len(served) == 1:
        return served[0]
    listed = f"it serves {on_one_line(', '.join(served), _LONGEST)}" if served else "it does not say what it serves"
    raise SettingsError([f"--model: expected the model's name at {address}: {listed}"])


def _call(
    client: httpx.Client, method: str, url: str, seconds: float, body: Any = None, *, listed: bool = False
) -> dict[str, Any]:
    """The JSON object that comes back; what may pass is tried again, a few times."""
    for attempt in range(1, _ATTEMPTS + 1):
        last = attempt == _ATTEMPTS or listed
        try:
            status, content, place = _send(client, method, url, seconds, body)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            # A refused connection, or a question that took all of its time, is no matter of a moment.
            if last or isinstance(error, httpx.ConnectError | httpx.TimeoutException | TimeoutError):
                raise _failure(url, f"does not answer ({type(error).__name__})", "start it, or correct URL") from error
        else:
            if status not in _TRANSIENT or last:
                return _read_object(status, content, place, url, listed=listed)
        time.sleep(_WAIT_SECONDS * attempt)
    raise AssertionError("the last attempt returns or raises")


def _send(client: httpx.Client, method: str, url: str, seconds: float, body: Any) -> tuple[int, bytes, str]:
    """Status, content and the place of a redirect, within ``seconds`` in all."""
    ends = time.monotonic() + seconds
    with client.stream(method, url, json=body, timeout=httpx.Timeout(seconds, connect=_REACH_SECONDS)) as response:
        content = b""
        for part in response.iter_bytes():
            content += part
            if time.monotonic() > ends:
                raise TimeoutError
            if len(content) > _MOST_BYTES:
                raise _failure(url, f"sends more than {_MOST_BYTES:,} bytes", "correct URL")
        return response.status_code, content, response.headers.get("location", "")


def _read_object(status: int, content: bytes, place: str, url: str, *, listed: bool) -> dict[str, Any]:
    if 300 <= status < 400:
        raise _failure(
            url, f"redirects to {on_one_line(place, _LONGEST)}", "give that address: the key is sent to no other host"
        )
    text = content.decode(errors="replace")
    if status >= 400 and not (listed and status in (404, 405)):
        key = os.environ.get(KEY_VARIABLE, "").strip()
        said = on_one_line(text.replace(key, "…") if key else text, _LONGEST)
        fix = f"set {KEY_VARIABLE}" if status in (401, 403) else "correct URL, --model or --request"
        raise _failure(url, f"answers {status}: {said}", fix)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        return found
    raise _failure(url, f"answers {status} without a JSON object", "give the address of an OpenAI-compatible server")


def _read_reply(found: dict[str, Any], address: str, seconds: float) -> Reply:
    try:
        choice, usage = found["choices"][0], found.get("usage") or {}
        message = choice["message"]
        reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
        return Reply(
            text=str(message.get("content") or ""),
            finish_reason=str(choice.get("finish_reason") or ""),
            prompt_tokens=_count(usage.get("prompt_tokens")),
            completion_tokens=_count(usage.get("completion_tokens")),
            reasoning=str(reasoning),
            seconds=seconds,
        )
    except (LookupError, TypeError, AttributeError) as error:
        raise _failure(address, "answers without choices[0].message", "give an OpenAI-compatible server") from error


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _failure(url: str, what: str, fix: str) -> SettingsError:
    return SettingsError([f"URL: {url} {what}; {fix}"])
