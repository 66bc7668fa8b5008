"""Functions that a setting names: whatever is wrong with one is reported with its name and the row it was given."""

import copy
import pkgutil
import textwrap
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from training_core.code_digest import function_files
from training_core.config import SettingsError
from training_core.rows.strict_json import DataError, describe_value

_LONGEST_ERROR = 300


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
            function = pkgutil.resolve_name(name)
            function_files(name)  # results depend on its code
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the code is not ours, so it may raise anything, and call exit
            fix = "put its module into the working directory or on PYTHONPATH, or correct it"
            raise SettingsError([f"{setting}: cannot import {name!r}: {_describe(error)}; {fix}"]) from error
        if not callable(function):
            raise SettingsError([f"{setting}: expected module:function, got {name!r}, which is not a function"])
        return cls(setting, name, function)

    def call(self, place: str, *arguments: Any) -> Any:
        """What the function returns for the row at ``place``, of which it gets a copy; raises ``DataError`` with the
        place when it fails."""
        try:
            return self.function(*copy.deepcopy(arguments))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # as above
            problem = f"{self.setting}: {self.name} failed for the row at {place}: {_describe(error)}"
            raise DataError(f"{problem}; correct the function") from error

    def decision(self, place: str, *arguments: Any) -> str | None:
        """The decision that the function returns, or ``None``; raises ``DataError`` for anything else."""
        found = self.call(place, *arguments)
        if found is None or (isinstance(found, str) and found.strip()):
            return found
        raise self._unexpected(place, "a decision or None", found)

    def problems(self, place: str, *arguments: Any) -> list[str]:
        """What the function returns as a list of problems: it may return none, one text, or several."""
        found = self.call(place, *arguments)
        several = [found] if isinstance(found, str) else [] if found is None else found
        if not isinstance(several, list | tuple) or not all(isinstance(one, str | int | float) for one in several):
            raise self._unexpected(place, "a list of problems, each a text", found)
        return [str(one) for one in several if one != ""]

    def _unexpected(self, place: str, expected: str, found: object) -> DataError:
        given = describe_value(found) if isinstance(found, str | int | float | list | dict) else type(found).__name__
        what = f"returned {given} for the row at {place}, expected {expected}"
        return DataError(f"{self.setting}: {self.name} {what}; correct the function")


def _describe(error: BaseException) -> str:
    """The error on one line and where it was raised: ``KeyError: 'days' (rules.py, line 12)``."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    text = textwrap.shorten(text, _LONGEST_ERROR, placeholder=" …")
    if isinstance(error, SyntaxError):
        return text  # it names file and line itself
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_ours(frame.filename)]
    return f"{text} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else text


def _is_ours(file: str) -> bool:
    return file in (__file__, pkgutil.__file__, copy.__file__, function_files.__code__.co_filename) or file[0] == "<"
