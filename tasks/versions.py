"""Versions of a registered model and their aliases; needs neither torch nor Prefect.

The champion is what the ledger's newest entry names. The alias ``champion``, which serving reads, follows it; an alias
that was moved in MLflow is entered into the ledger.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import LifecycleStage
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode

from tasks.ledger import ALIAS, Entry, Ledger, VersionId, append, mark_applied, read_ledger, restore_command
from tasks.tracking import FINGERPRINT_TAG, connect
from training_core.config import RunConfig, SettingsError

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
ADAPTER_TAG, WITHDRAWN_TAG = "sft_flow.adapter_digest", "sft_flow.withdrawn"
LIMIT_TAG = "sft_flow.max_new_tokens"  # of an answer, served and evaluated
CONSTRAIN_TAG, ERROR_TAG = "sft_flow.constrain", "sft_flow.max_automatic_error"
NAME_TAG = "sft_flow.registered_model"  # of a logged model: the one name that a version of it may have
_SERVING = ("eval_max_new_tokens", "constrain", "max_automatic_error")  # the settings of ``serving_tags``
CONFIDENCE_TAG = "sft_flow.min_confidence"  # above it a case is decided automatically

SETTLE_SECONDS = 1
RegistryError = MlflowException  # for rooms that do not import MLflow

_DECISION_TAG = "sft_flow.decision.{:06d}"
# An unknown alias is an invalid parameter to some stores, a missing resource to others.
_MISSING = (ErrorCode.Name(INVALID_PARAMETER_VALUE), ErrorCode.Name(RESOURCE_DOES_NOT_EXIST))


def named_version(config: RunConfig, name: str) -> ModelVersion | None:
    """The version of this number, or that this alias points to, if any."""
    client, model = connect(config), config.registered_model_name
    try:
        read = client.get_model_version if name.isdecimal() else client.get_model_version_by_alias
        return read(model, name)
    except MlflowException as error:
        if error.error_code in _MISSING:
            return None
        raise


def find_version(config: RunConfig, fingerprint: str) -> ModelVersion | None:
    """The one version of a run fingerprint, if any."""
    found = versions_of(config, fingerprint)
    return found[0] if found else None


def versions_of(config: RunConfig, fingerprint: str) -> list[ModelVersion]:
    """All versions of a run fingerprint; the first is the one that counts."""
    return all_versions(config, f" and tags.`{FINGERPRINT_TAG}` = '{fingerprint}'")


def delete_version(config: RunConfig, version: ModelVersion) -> None:
    """Delete a version; one that another process has deleted meanwhile is no error."""
    try:
        connect(config).delete_model_version(version.name, version.version)
    except MlflowException as error:
        if error.error_code not in _MISSING:
            raise


def all_versions(config: RunConfig, condition: str = "") -> list[ModelVersion]:
    """The versions that meet a condition, the lowest number first; none where the model is not registered."""
    found = connect(config).search_model_versions(f"name = '{config.registered_model_name}'{condition}")
    return sorted(found, key=lambda version: int(version.version))


def aliases_of(config: RunConfig) -> dict[str, list[str]]:
    """The aliases of each version of the registered model, by its number."""
    found: dict[str, list[str]] = {}
    for model in connect(config).search_registered_models(f"name = '{config.registered_model_name}'"):
        for alias, number in sorted(model.aliases.items()):
            found.setdefault(str(number), []).append(alias)
    return found


def model_names(config: RunConfig) -> list[str]:
    """The names of all registered models."""
    return sorted(model.name for model in connect(config).search_registered_models())


def settings_of(config: RunConfig, number: str) -> RunConfig:
    """The settings that a version was trained with.

    Raises ``SettingsError`` when the MLflow run of the version was deleted.
    """
    version = named_version(config, number)
    assert version
    require_tracking_run(config, version)
    with tempfile.TemporaryDirectory() as folder:
        return RunConfig.load(Path(connect(config).download_artifacts(version.run_id, "run_config.json", folder)))


def require_tracking_run(config: RunConfig, version: ModelVersion) -> None:
    """Raise ``SettingsError`` with what to do when the MLflow run of a version was deleted."""
    what = f"registered_model_name: the MLflow run of {version.name} version {version.version} was deleted"
    try:
        run = connect(config).get_run(version.run_id)
    except MlflowException as error:
        if error.error_code not in _MISSING:
            raise
        fix = f"and purged; delete the version as well, or give another name than {version.name!r}"
        raise SettingsError([f"{what} {fix}"]) from error
    if run.info.lifecycle_stage != LifecycleStage.ACTIVE:
        raise SettingsError([f"{what}; restore it: {restore_command(config, version.run_id)}"])


def serving_tags(config: RunConfig) -> dict[str, str]:
    """The tags of the settings that a version is served with."""
    return {
        LIMIT_TAG: str(config.eval_max_new_tokens),
        CONSTRAIN_TAG: config.constrain,
        ERROR_TAG: str(config.max_automatic_error),
    }


def served_with(version: ModelVersion) -> dict[str, Any]:
    """The settings that a version is served with, as its package has them."""
    return {
        "max_new_tokens": int(version.tags[LIMIT_TAG]),
        "constrain": version.tags.get(CONSTRAIN_TAG, "none"),
        "min_confidence": served_threshold(version),
    }


def served_threshold(version: ModelVersion) -> float | None:
    """The confidence above which a version decides automatically; ``None``: it decides every case with an answer."""
    confidence = version.tags.get(CONFIDENCE_TAG)
    return None if confidence is None else float(confidence)


def require_served_settings(config: RunConfig, version: ModelVersion) -> None:
    """Raise ``SettingsError`` when a version is served with other settings than these, which evaluate it: scores would
    be those of answers that no customer gets."""
    earlier = {CONSTRAIN_TAG: "none", ERROR_TAG: str(None)}  # versions that were registered before these settings
    one, fix = f"{version.name} version {version.version}", "or register it under another registered_model_name"
    problems = []
    for name, (tag, asked) in zip(_SERVING, serving_tags(config).items(), strict=True):
        served = version.tags.get(tag, earlier.get(tag))
        if served != asked:
            value = "null" if served == "None" else served
            problems.append(f"{name}: {one} is served with {served}, got {asked}; give --{name} {value}, {fix}")
    if problems:
        raise SettingsError(problems)


def version_id(version: ModelVersion | None) -> VersionId | None:
    """What the ledger calls a version."""
    return VersionId(str(version.version), version.tags.get(FINGERPRINT_TAG, "")) if version else None


def existing(config: RunConfig, one: VersionId | None) -> ModelVersion | None:
    """The version that the ledger calls so, unless it was deleted."""
    version = named_version(config, one.number) if one else None
    return version if version_id(version) == one else None


def point_alias(config: RunConfig, alias: str, version: str | None) -> None:
    """Let an alias of the registered model point to a version that is still there, or remove it."""
    client, model = connect(config), config.registered_model_name
    if version:
        try:
            client.set_registered_model_alias(model, alias, version)
        except MlflowException as error:
            if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                return  # deleted at this moment: the next decision finds it gone, and says so in the ledger
            # MLflow looks before it inserts: of two processes that set a new alias at once, one is refused.
            if error.error_code != ErrorCode.Name(BAD_REQUEST):
                raise
            client.set_registered_model_alias(model, alias, version)
    elif named_version(config, alias):
        client.delete_registered_model_alias(model, alias)


def tag_version(config: RunConfig, version: str, tags: Mapping[str, str]) -> None:
    """Put tags on a version; old values of these tags are lost."""
    client = connect(config)
    for name, value in tags.items():
        client.set_model_version_tag(config.registered_model_name, version, name, value)


def find_champion(config: RunConfig, ledger: Ledger) -> ModelVersion | None:
    """The version that answers customers: the one that the alias names, or that the ledger's newest entry names while
    the alias is still to be set."""
    return named_version(config, CHAMPION) if ledger.is_applied else existing(config, ledger.champion)


def decide_once(config: RunConfig, decide: Callable[[Ledger], Entry | None]) -> Entry | None:
    """Read the ledger, let ``decide`` make the next entry from it, and write that; start again when another process
    wrote one meanwhile. Then set the aliases.

    The ledger's champion is the one of the alias, also when that was moved outside sft-flow. ``decide`` returns
    ``None`` when there is nothing to write, and an entry of the ledger when the decision is in it already.
    """
    while True:
        ledger = read_ledger(config)
        if not ledger.is_applied:  # the process that wrote it is about to do the same, or was killed
            set_aliases(config)
            continue
        if moved := _moved_outside(config, ledger):
            append(config, ledger, moved)
            continue
        entry = decide(ledger)
        written = append(config, ledger, entry) if entry and not entry.number else entry
        if entry is None or written is not None:
            break
    if written and written is not entry:
        set_aliases(config)
        _tag_versions(config, written)
    return written


def set_aliases(config: RunConfig) -> None:
    """Let the aliases follow the ledger's newest entry, and once more when a newer one was written meanwhile."""
    done = None
    while (ledger := read_ledger(config)).newest_change not in (None, done):
        champion = existing(config, ledger.champion)
        previous = next((one for one in reversed(ledger.earlier_champions) if existing(config, one)), None)
        point_alias(config, CHAMPION, str(champion.version) if champion else None)
        point_alias(config, PREVIOUS, previous.number if previous else None)
        done = ledger.newest_change
        mark_applied(config, ledger, done)


def _moved_outside(config: RunConfig, ledger: Ledger) -> Entry | None:
    """The entry on an alias that names another version than the ledger, and keeps doing so: a process that was slow to
    set it after an older entry is about to correct it."""
    champion = named_version(config, CHAMPION)
    if version_id(champion) == ledger.champion:
        return None
    time.sleep(SETTLE_SECONDS)
    champion = named_version(config, CHAMPION)
    if version_id(champion) == ledger.champion:
        return None
    if champion:
        reason = f"the alias {CHAMPION!r} was set to version {champion.version} outside sft-flow"
    else:
        reason = "the champion, its alias or the registered model was deleted outside sft-flow"
    after = version_id(champion)
    return Entry(ALIAS, "becomes champion" if after else "no champion", after, ledger.champion, after, reason)


def _tag_versions(config: RunConfig, entry: Entry) -> None:
    """Show a decision on the pages of its versions. The ledger holds it already: a version may be gone by now."""
    tags = {_DECISION_TAG.format(entry.number): f"{entry.outcome} (by {entry.by}): {entry.reason}"}
    with contextlib.suppress(MlflowException):
        if entry.version:
            tag_version(config, entry.version.number, tags)
    for version in all_versions(config):
        fingerprint = version.tags.get(FINGERPRINT_TAG)
        if fingerprint in entry.withdrawn:
            tag_version(config, str(version.version), {WITHDRAWN_TAG: f"{entry.time}: {entry.reason}"})
        elif WITHDRAWN_TAG in version.tags and version_id(version) == entry.after != entry.before:
            connect(config).delete_model_version_tag(version.name, version.version, WITHDRAWN_TAG)
