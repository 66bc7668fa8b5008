"""What is behind an error: libraries wrap errors of the disk and the network in their own, and word them anew."""

import errno
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
_IN_THE_WAY = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
# SQLite, safetensors and torch name no number.
_DISK_WORDS = (
    "no space left on device",
    "disk is full",
    "readonly database",
    "read-only file system",
    "disk i/o error",
)
_NETWORK = (ConnectionError, TimeoutError, socket.gaierror)
# What a proxy answers whose server is away, in the words of MLflow's client (without and with repeats) and of boto's.
_AWAY = re.compile(
    r"error code 50[234]\b|too many 50[234] error responses|an error occurred \(50[234]\)", re.IGNORECASE
)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it was raised from, what was handled when it was raised, and so on to the first ones."""
    seen, left = set[int](), [error]
    while left:
        one = left.pop()
        if one and id(one) not in seen:
            seen.add(id(one))
            yield one
            left += [one.__context__, one.__cause__]


def is_disk_error(error: BaseException | None) -> bool:
    """Whether a disk is full or cannot be written to, or has a file where a folder should be: no retry mends that, a
    person does."""
    return any(
        (isinstance(one, OSError) and (one.errno in _DISK or _is_in_the_way(one)))
        or any(words in str(one).lower() for words in _DISK_WORDS)
        for one in causes(error)
    )


def _is_in_the_way(error: OSError) -> bool:
    """A file where a folder should be, or the reverse. A folder that exists was made by another process meanwhile."""
    return error.errno in _IN_THE_WAY and not (
        error.errno == errno.EEXIST and Path(os.fsdecode(error.filename or b"")).is_dir()
    )


def is_lasting(error: BaseException | None) -> bool:
    """Whether no retry mends an error: settings, rows and disks are wrong, or a file of this machine is gone. Stores
    and the hub give no error number: what they do not have now may be there at the next try."""
    is_gone = isinstance(error, FileNotFoundError) and error.errno is not None and not is_network_error(error)
    return isinstance(error, ValueError) or is_gone or is_disk_error(error)


def is_network_error(error: BaseException | None) -> bool:
    """Whether a server could not be reached, or hung up: it may be back in half an hour."""
    return any(isinstance(one, _NETWORK) or _AWAY.search(str(one)) for one in causes(error))
