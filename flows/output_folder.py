"""The folder that a run writes to: tried before anything starts, and asked again when the run has failed."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from flows.terminal import CANNOT_WRITE, complain
from training_core.config import SettingsError
from training_core.error_causes import is_disk_error

_CHECK_BYTES = 2**20
_GONE = "'{}' is not there: it was deleted or moved; put it back"


@contextlib.contextmanager
def writable_folder(folder: Path) -> Iterator[None]:
    """Raise ``SettingsError`` when ``folder`` cannot be written to; end with one sentence when the body fails for that.

    Libraries word a full disk, or a folder that is gone, in many ways, and a server on the same disk fails too.
    """
    if problem := folder_problem(folder, create=True):
        raise SettingsError([f"output_dir: {problem}"])
    before = folder.stat()
    try:
        yield
    finally:
        error = sys.exc_info()[1]
        if isinstance(error, Exception) and (problem := _problem_after(folder, before, error)):
            complain(f"output_dir: {problem}; then the same command resumes.")
            sys.exit(CANNOT_WRITE)


def _problem_after(folder: Path, before: os.stat_result, error: Exception) -> str:
    """Why a body failed in a folder that it could write to, when the folder is the reason."""
    if problem := folder_problem(folder) or _problem_within(folder, error):
        return problem
    if os.path.samestat(folder.stat(), before):
        return ""
    # A server or a library has made the path again.
    return (
        f"{str(folder)!r} was deleted or moved, and what is there now was made since; put the old folder in its place"
    )


def _problem_within(folder: Path, error: Exception) -> str:
    """What is wrong with a file or folder in ``folder``, when an error, or what it was raised from, names one and does
    not say more itself. What was handled before is not its reason."""
    for one in [] if isinstance(error, ValueError) else _reasons(error):
        if isinstance(one, OSError) and one.filename:
            place = Path(os.fsdecode(one.filename)).absolute()
            if place.is_relative_to(folder.resolve()):
                return _sentence(place, one)
    return ""


def _reasons(error: BaseException | None) -> Iterator[BaseException]:
    while error:
        yield error
        error = error.__cause__


def _sentence(place: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{str(place)!r} was deleted or moved while the run used it; put it back, or let it be made anew"
    if is_disk_error(error):
        return f"cannot write to {str(place)!r}: {error.strerror}; move away what is there, or allow it"
    return ""


def folder_problem(folder: Path, *, create: bool = False) -> str:
    """Why a file of a megabyte cannot be written to a folder, and the fix; empty where it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True) if create else folder.stat()
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(_CHECK_BYTES))
            probe.flush()
    except FileNotFoundError:
        return f"{str(folder)!r} is not there: it cannot be created; choose another" if create else _GONE.format(folder)
    except (FileExistsError, NotADirectoryError):
        return f"expected a folder in {str(folder)!r}, found a file; move it away, or choose another folder"
    except OSError as error:
        return f"cannot write to {str(folder)!r}: {error.strerror}; free space, or allow this user to write there"
    return ""
