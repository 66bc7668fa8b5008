"""A file of answers from beginning to end: what it depends on, whether it is there already, and where it goes."""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from training_core.code_digest import code_digest
from training_core.config import SettingsError, read_settings_file
from training_core.prediction.answering import Answerer, Progress, answer_cases
from training_core.prediction.cases import Cases
from training_core.prediction.lines import Counts
from training_core.prediction.parts import Key, Parts
from training_core.prediction.places import (
    delete,
    digest_of,
    keeps_files,
    local_path,
    names_in,
    read_object,
    whole_file,
)
from training_core.utils import pick_precision

logger = logging.getLogger(__name__)

_SECONDS_TO_WAIT = 60  # for the end of a process that has just been killed
_SUFFIXES = (".jsonl", ".ndjson")
_ENTRY = "training_core.prediction.answering"
_SETTINGS = ("eval_max_new_tokens", "eval_batch_size", "constrain", "max_seq_length", "allowed_decisions")


@dataclass(frozen=True)
class Job:
    """Cases, what answers them, and its name and digests.

    ``parts`` is the folder of what is answered already; ``output`` a path or URL, or ``None`` for a stream.
    """

    cases: Cases
    answerer: Answerer
    version: str
    adapter_digest: str
    base_digest: str
    parts: str
    output: str | None = None

    @cached_property
    def key(self) -> Key:
        """All that the bytes of the answers depend on. Another kind of machine rounds otherwise."""
        own = self.answerer.config
        return {
            "input": self.cases.digest,
            "adapter": self.adapter_digest,
            "base": self.base_digest,
            "min_confidence": self.answerer.min_confidence,
            **{name: json.loads(json.dumps(getattr(own, name))) for name in _SETTINGS},
            "precision": pick_precision(read_settings_file(self.answerer.adapter).get("precision", "auto")).reason,
            "code": code_digest(_ENTRY, without=["training_core.config"]),
        }

    @property
    def summary(self) -> str:
        """The file next to the output that says what it was made from, and counts its lines."""
        return f"{self.output}.summary.json"


def output_problems(rows: str, output: str) -> list[str]:
    """Why answers to these rows cannot be written there."""
    if not output.endswith(_SUFFIXES):
        return [f"output: expected a name that ends in {' or '.join(_SUFFIXES)}, or - for a pipe, got {output!r}"]
    if not keeps_files(output):
        return [f"output: expected a path or the URL of a store to write to, such as s3://bucket/…, got {output!r}"]
    try:
        path = local_path(output)
    except (ImportError, ValueError) as error:  # a protocol whose package is missing, or that nobody knows
        return [f"output: cannot write to {output!r}: {error}"]
    if path is None:
        return []
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        return [f"output: expected a file in a folder that exists and can be written to, got {output!r}"]
    if "://" not in rows and (path.is_relative_to(Path(rows).resolve()) or path.match(str(Path(rows).absolute()))):
        return [f"output: {output!r} would be read as rows; write it outside of {rows!r}"]
    return []


def read_summary(job: Job) -> Counts | None:
    """The counts of answers that are there as they were written, if they were made with this job's key.

    Deletes parts that are left of them. Raises ``SettingsError`` while another process makes them again.
    """
    found = read_object(job.summary)
    if found.get("key") != job.key or found.get("sha256") != digest_of(str(job.output)):
        return None
    if names_in(job.parts):  # of a job that was killed just before it would have deleted them
        with _alone(job.parts):
            delete(job.parts)
    return Counts(**found["counts"])


def write_answers(job: Job, report: Callable[[Progress], object], stream: IO[bytes] | None = None) -> Counts:
    """Answer all cases, to ``stream`` as windows are complete, or to ``job.output``, which appears when all are.

    A killed job goes on after its last part and gives the same bytes; parts of another input or version are deleted.
    """
    counts, digest = Counts(), hashlib.sha256()
    with _alone(job.parts), whole_file(str(job.output)) if stream is None else contextlib.nullcontext(stream) as target:
        _begin(job.parts, job.key)
        for lines in answer_cases(job.cases, job.answerer, Parts(job.parts), report):
            counts.add(lines)
            for line in lines:
                digest.update(line)
                target.write(line)
            target.flush()
    if stream is None:
        _write_summary(job, counts, digest.hexdigest())
    delete(job.parts)
    return counts


def _write_summary(job: Job, counts: Counts, digest: str) -> None:
    content = {"version": job.version, "sha256": digest, "key": job.key, "counts": asdict(counts)}
    with whole_file(job.summary) as file:
        file.write(json.dumps(content, ensure_ascii=False, indent=1).encode() + b"\n")


def _begin(folder: str, key: Key) -> None:
    parts = Parts(folder)
    if changed := [name for name in key if parts.key and parts.key.get(name) != key[name]]:
        logger.info("Answers begun in %s are deleted and all cases asked anew: other %s", folder, ", ".join(changed))
    parts.begin(key)


@contextlib.contextmanager
def _alone(folder: str) -> Iterator[None]:
    """Raise ``SettingsError`` while another process of this machine writes the same answers."""
    path = local_path(folder)
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    try:
        with FileLock(lock, timeout=_SECONDS_TO_WAIT):
            yield
            lock.unlink(missing_ok=True)
    except Timeout as error:
        raise SettingsError([f"output: another process is writing these answers; wait for its end ({lock})"]) from error
