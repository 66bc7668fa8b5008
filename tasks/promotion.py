"""Tasks that decide which version answers customers, and that know what has been decided before."""

import hashlib
import json
from dataclasses import replace

from prefect import get_run_logger, task
from prefect.events import emit_event

from tasks.refs import DatasetRef, EvalReport, ModelVersionRef
from tasks.registry import CHAMPION, find_version, named_version, point_alias, tag_version
from tasks.store import open_folder
from training_core.config import RunConfig
from training_core.dataset.store import load_training_data
from training_core.evaluation.comparison import contest_key
from training_core.training.identity import training_identity

PROMOTED = "sft-flow.promoted"

_JUDGED_TAG, _VERDICT_TAG = "sft_flow.judged", "sft_flow.verdict"


@task(retries=3, retry_delay_seconds=[5, 30, 120])
def find_finished(config: RunConfig, dataset: DatasetRef) -> ModelVersionRef | None:
    """The version that this run would end with, when it has been trained and judged before: nothing is new then.

    Retried because the registry is reached over the network.
    """
    found = find_version(config, training_identity(config, dataset.digest, dataset.base_digest))
    if found is None:
        return None
    champion = _champion(config)
    if found.tags.get(_JUDGED_TAG) != _judgement(config, dataset, champion):
        return None
    number = str(found.version)
    return ModelVersionRef(config.registered_model_name, number, champion == number, found.tags[_VERDICT_TAG])


@task(retries=3, retry_delay_seconds=[5, 30, 120])
def promote(config: RunConfig, dataset: DatasetRef, version: ModelVersionRef, report: EvalReport) -> ModelVersionRef:
    """Make the version champion when it has earned it, say why or why not, and remember that this is decided."""
    reigning = _champion(config)
    if reigning not in (version.version, report.champion):
        return replace(version, verdict="stays candidate: the champion changed while it was judged; run again")
    earned, grounds = judge(report, config.min_improvement)
    if reigning == version.version:
        decided = replace(version, champion=True, verdict=f"is the champion already: {grounds}")
    else:
        verdict = f"{'becomes champion' if earned else 'stays candidate'}: {grounds}"
        decided = replace(version, champion=earned, verdict=verdict)
        if earned:
            _crown(config, decided)
    get_run_logger().info("Version %s %s", decided.version, decided.verdict)
    judgement = _judgement(config, dataset, decided.version if decided.champion else reigning)
    tag_version(config, decided.version, {_VERDICT_TAG: decided.verdict, _JUDGED_TAG: judgement})
    return decided


def judge(report: EvalReport, min_improvement: float) -> tuple[bool, str]:
    """Whether the candidate beats everyone else by more than ``min_improvement``, and gives no more away than the
    champion does; and the figures that say so."""
    rivals = {name: accuracy for name, accuracy in report.accuracy.items() if name != "candidate"}
    best = max(rivals, key=rivals.__getitem__)
    own, rival = report.accuracy["candidate"], rivals[best]
    grounds = f"{own:.1%} of decisions right, the {best} has {rival:.1%}"
    if own <= rival + min_improvement:
        return False, grounds
    given_away = report.wrongly_favourable
    if "champion" in rivals and given_away["candidate"] > given_away["champion"]:
        return False, (
            f"wrongly favourable in {given_away['candidate']:.1%} of the cases, "
            f"the champion in {given_away['champion']:.1%}"
        )
    return True, grounds


def _champion(config: RunConfig) -> str | None:
    version = named_version(config, CHAMPION)
    return str(version.version) if version else None


def _crown(config: RunConfig, version: ModelVersionRef) -> None:
    point_alias(config, CHAMPION, version.version)
    emit_event(
        PROMOTED,
        resource={"prefect.resource.id": f"sft-flow.model.{version.name}.{version.version}"},
        payload={"verdict": f"{version.name} version {version.version} {version.verdict}"},
    )


def _judgement(config: RunConfig, dataset: DatasetRef, champion: str | None) -> str:
    """SHA-256 over what a verdict on a version depends on: held-out rows, settings, and who is champion after it."""
    data = load_training_data(open_folder(dataset.folder, config))
    parts = [contest_key(config, data, []), config.min_improvement, champion]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
