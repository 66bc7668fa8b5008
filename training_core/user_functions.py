"""Functions that a setting names: whatever is wrong with one is reported with its name and the row it was given."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from training_core.config import SettingsError
from training_core.rows.strict_json import DataError

# The code is not ours, so it may raise anything, and call exit.
_ANYTHING = (Exception, SystemExit)


@dataclass(frozen=True)
class UserFunction:
    """A function of the setting ``setting``, named ``module:function``."""

    setting: str
    name: str
    function: Callable[..., Any]

    @classmethod
    def load(cls, setting: str, name: str) -> "UserFunction":
        """Import the function; raises ``SettingsError`` when that fails."""
        try:
            function = resolve_name(name)
        except _ANYTHING as error:
            raise SettingsError([f"{setting}: cannot import {name!r}: {_describe(error)}"]) from error
        if not callable(function):
            raise SettingsError([f"{setting}: expected module:function, got {name!r}, which is not a function"])
        return cls(setting, name, function)

    def call(self, place: str, *arguments: Any) -> Any:
        """What the function returns for the row at ``place``; raises ``DataError`` with the place when it fails."""
        try:
            return self.function(*arguments)
        except _ANYTHING as error:
            problem = f"{self.setting}: {self.name} failed for the row at {place}: {_describe(error)}"
            raise DataError(f"{problem}; correct the function") from error

    def problems(self, place: str, *arguments: Any) -> list[str]:
        """What the function returns as a list of problems: it may return none, one text, or several."""
        found = self.call(place, *arguments) or []
        return [found] if isinstance(found, str) else list(map(str, found))


def _describe(error: BaseException) -> str:
    """The error and where it was raised: ``KeyError: 'days' (rules.py, line 12)``."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SyntaxError):
        return text  # it names file and line itself
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{text} ({last.filename}, line {last.lineno})" if last.filename != __file__ else text
