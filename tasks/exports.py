"""A registered version leaves the house: exported, judged, and its verdict in the registry's ledger."""

from dataclasses import dataclass, replace
from pathlib import Path

from tasks.artifact_store import open_folder
from tasks.ledger import EXPORT, Entry, Ledger
from tasks.refs import RegisteredRef
from tasks.registered import fetch_registered, registered_dataset, registered_settings, served_settings
from tasks.versions import decide_once, named_version, version_id
from training_core.base_model import base_folder
from training_core.config import RunConfig
from training_core.dataset.store import load_training_data
from training_core.export.choices import Wanted
from training_core.export.formats import formats
from training_core.export.judged_folder import give_name, write_judged
from training_core.export.source import Source
from training_core.export.verdict import Verdict, advice
from training_core.training.gpu_lock import sole_use_of_gpu


@dataclass(frozen=True)
class Exported:
    """Where an export is, its verdict, and what to do about that, where it is known."""

    folder: Path
    verdict: Verdict
    advice: str


def export_version(config: RunConfig, number: str, wanted: Wanted, folder: Path) -> Exported:
    """Export a version, judge it on the version's held-out rows, and enter that into the ledger.

    Raises ``SettingsError`` when version, rows or base are not to be had, and as ``write_judged`` does.
    """
    registered = fetch_registered(config, number)
    settings = registered_settings(config, number)
    source = replace(_source(config, settings, registered), weights=wanted.weights)
    data = load_training_data(open_folder(registered_dataset(config, registered).folder, config))
    asked = _evaluation(served_settings(settings, registered), wanted)
    form = formats(wanted.gguf_type)[wanted.format]
    with sole_use_of_gpu(f"the export to {folder.resolve()}"):
        written, verdict = write_judged(source, wanted.format, form, data, asked, folder)
    _record(config, number, wanted.format, verdict)
    place = give_name(written, folder, verdict)  # last: what has its name is never judged again
    return Exported(place, verdict, advice(source, verdict))


def _evaluation(served: RunConfig, wanted: Wanted) -> RunConfig:
    """The settings to compare decisions with: the code of ``answer_audit`` may not be here."""
    return replace(served, max_eval_rows=wanted.max_eval_rows or served.max_eval_rows, answer_audit=None)


def _source(config: RunConfig, settings: RunConfig, registered: RegisteredRef) -> Source:
    base = base_folder(settings.model_name)
    return Source(
        uri=f"models:/{config.registered_model_name}/{registered.version}",
        adapter=Path(registered.adapter.path),
        base=Path(registered.base),
        base_name=Path(registered.base).name if base else settings.model_name,
        base_commit=registered.run.base_commit,
        max_new_tokens=registered.max_new_tokens or settings.eval_max_new_tokens,
        constrain=registered.constrain,
    )


def _record(config: RunConfig, number: str, kind: str, verdict: Verdict) -> None:
    """Enter the verdict: it leaves the champion as it is."""
    own = version_id(named_version(config, number))

    def entry_of(ledger: Ledger) -> Entry:
        outcome = f"exported as {kind}: {verdict.outcome}"
        return Entry(EXPORT, outcome, own, ledger.champion, ledger.champion, verdict.sentence)

    decide_once(config, entry_of)
