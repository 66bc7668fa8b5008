"""What differs between a candidate's making and the champion's: settings, training rows and policies."""

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from textwrap import shorten

from tasks.ledger import Entry, Ledger
from tasks.refs import DatasetRef, RunRef
from tasks.tracking import DATASET_TAG, FINGERPRINT_TAG, connect, read_evaluation_file
from tasks.versions import existing, settings_of
from training_core.config import RunConfig, SettingsError
from training_core.evaluation.evidence import POLICIES_FILE, load_policies

Change = tuple[str, str, str]  # what, before, now

_WITHOUT_EFFECT = ("output_dir", "cache_dir", "registered_model_name", "train_on", "max_queue_hours")
_MOST_LINES = 20


def changes_since_champion(
    config: RunConfig, run: RunRef, evaluation: Path, ledger: Ledger, entry: Entry
) -> list[Change]:
    """What differs between a training and that of the champion before the decision on it; nothing where there was none,
    or its MLflow run was deleted."""
    champion = existing(config, entry.before)
    if champion is None or entry.before == entry.version:
        return []
    try:
        before = settings_of(config, str(champion.version))
    except SettingsError:
        return []
    earlier, run_id = replace(ledger, entries=ledger.entries[: entry.number - 1]), str(champion.run_id)
    last = earlier.last_by_gate(champion.tags[FINGERPRINT_TAG])
    return [
        *_settings(before, config),
        *_rows(_dataset(config, run_id), _dataset(config, run.tracking_run_id)),
        *_policies(_policies_of(config, run_id, last), load_policies(evaluation)),
    ]


def _settings(before: RunConfig, now: RunConfig) -> Iterator[Change]:
    old = asdict(before)
    for name, value in asdict(now).items():
        if name not in _WITHOUT_EFFECT and value != old[name]:
            yield name, str(old[name]), str(value)


def _rows(before: DatasetRef, now: DatasetRef) -> Iterator[Change]:
    if before.digest != now.digest:
        old, new = (f"{rows.train_rows:,} rows, digest {rows.digest[:12]}" for rows in (before, now))
        yield "training rows", old, new


def _dataset(config: RunConfig, run_id: str) -> DatasetRef:
    return DatasetRef(**json.loads(connect(config).get_run(run_id).data.tags[DATASET_TAG]))


def _policies_of(config: RunConfig, run_id: str, last: Entry | None) -> dict[str, str] | None:
    """The policies of the rows of an evaluation, by digest; ``None`` where it is not in MLflow."""
    text = read_evaluation_file(config, run_id, last.evidence, POLICIES_FILE) if last else None
    found: dict[str, str] | None = json.loads(text) if text else None
    return found


def _policies(before: Mapping[str, str] | None, now: Mapping[str, str]) -> Iterator[Change]:
    """Changed policies with the lines that went and came, by their first line; then those that are gone or new."""
    old, new = _by_title(before or {}), _by_title(now)
    for title in old | new if before else ():
        if old.get(title) != new.get(title):
            gone, come = _differing_lines(old.get(title, ""), new.get(title, ""))
            yield (
                f"policy of held-out rows: {title}",
                gone if title in old else "not among them",
                come if title in new else "not among them",
            )


def _by_title(policies: Mapping[str, str]) -> dict[str, str]:
    return {shorten(text.partition("\n")[0], 60, placeholder="…"): text for text in policies.values() if text}


def _differing_lines(before: str, now: str) -> tuple[str, str]:
    lines = list(difflib.ndiff(before.splitlines(), now.splitlines()))
    sides = ([line[2:] for line in lines if line.startswith(sign)] for sign in "-+")
    gone, come = (_first(side) for side in sides)
    return gone, come


def _first(lines: list[str]) -> str:
    more = [f"… and {len(lines) - _MOST_LINES} more lines"] if len(lines) > _MOST_LINES else []
    return "\n".join(lines[:_MOST_LINES] + more)
