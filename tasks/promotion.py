"""Tasks that decide which version answers customers, and that know what has been decided before."""

import hashlib
import json
from dataclasses import replace

from prefect import get_run_logger, task
from prefect.events import emit_event

from tasks.artifact_store import open_folder
from tasks.refs import DatasetRef, EvalReport, ModelVersionRef
from tasks.registry import CHAMPION, find_version, named_version, point_alias, tag_version
from training_core.code_digest import code_digest
from training_core.config import RunConfig
from training_core.dataset.store import load_training_data
from training_core.evaluation.comparison import comparison_key, load_evidence
from training_core.evaluation.gate import BECOMES_CHAMPION, GATE_SETTINGS, decide
from training_core.training.fingerprint import run_fingerprint

PROMOTED = "sft-flow.promoted"

_DECISION_KEY_TAG, _VERDICT_TAG = "sft_flow.decision_key", "sft_flow.verdict"


@task(retries=3, retry_delay_seconds=[5, 30, 120])
def find_finished(config: RunConfig, dataset: DatasetRef) -> ModelVersionRef | None:
    """The version that this run would end with, when it has been trained and judged before: nothing is new then.

    Retried because the registry is reached over the network.
    """
    found = find_version(config, run_fingerprint(config, dataset.digest, dataset.base_digest))
    if found is None:
        return None
    champion = _champion(config)
    if found.tags.get(_DECISION_KEY_TAG) != _decision_key(config, dataset, champion):
        return None
    number = str(found.version)
    return ModelVersionRef(config.registered_model_name, number, champion == number, found.tags[_VERDICT_TAG])


@task(retries=3, retry_delay_seconds=[5, 30, 120])
def promote(config: RunConfig, dataset: DatasetRef, version: ModelVersionRef, report: EvalReport) -> ModelVersionRef:
    """Make the version champion when it has earned it, say why or why not, and remember that this is decided."""
    current = _champion(config)
    if current not in (version.version, report.champion):
        return replace(version, verdict="stays candidate: the champion changed while it was judged; run again")
    verdict = decide(load_evidence(open_folder(report.folder, config)), config)
    if current == version.version:
        decided = replace(version, champion=True, verdict=f"is the champion already: {verdict.reason}")
    else:
        decided = replace(version, champion=verdict.outcome == BECOMES_CHAMPION, verdict=str(verdict))
        if decided.champion:
            _promote(config, decided)
    get_run_logger().info("Version %s %s", decided.version, decided.verdict)
    key = _decision_key(config, dataset, decided.version if decided.champion else current)
    tag_version(config, decided.version, {_VERDICT_TAG: decided.verdict, _DECISION_KEY_TAG: key})
    return decided


def _champion(config: RunConfig) -> str | None:
    version = named_version(config, CHAMPION)
    return str(version.version) if version else None


def _promote(config: RunConfig, version: ModelVersionRef) -> None:
    point_alias(config, CHAMPION, version.version)
    emit_event(
        PROMOTED,
        resource={"prefect.resource.id": f"sft-flow.model.{version.name}.{version.version}"},
        payload={"verdict": f"{version.name} version {version.version} {version.verdict}"},
    )


def _decision_key(config: RunConfig, dataset: DatasetRef, champion: str | None) -> str:
    """SHA-256 over what a verdict on a version depends on: held-out rows, settings, and who is champion after it."""
    data = load_training_data(open_folder(dataset.folder, config))
    rule = code_digest("training_core.evaluation.gate", without=["training_core.config"])
    settings = {name: getattr(config, name) for name in GATE_SETTINGS}
    parts = [comparison_key(config, data, []), rule, settings, champion]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
