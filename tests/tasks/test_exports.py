"""The verdict on an export is in the registry's ledger, and decides nothing there."""

from pathlib import Path
from unittest.mock import Mock

import pytest

from tasks import exports, tracking
from tasks.ledger import EXPORT, GATE, Entry, VersionId, read_ledger
from tasks.refs import FolderRef, RegisteredRef, RunRef
from tasks.versions import decide_once, named_version
from training_core.config import RunConfig
from training_core.export.choices import Wanted
from training_core.export.source import Source
from training_core.export.verdict import Verdict

ONE = VersionId("1", "fingerprint")
TRAINED_WITH = RunConfig(model_name="Qwen/Qwen2.5-1.5B-Instruct", max_eval_rows=70, answer_audit="house_rules:check")


@pytest.fixture
def registered(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RegisteredRef:
    """Version 1, champion; what is fetched and what is computed are stand-ins, the ledger is real."""
    client, name = tracking.connect(config), config.registered_model_name
    client.create_registered_model(name)
    client.create_model_version(name, "nowhere", tags={tracking.FINGERPRINT_TAG: ONE.fingerprint})
    decide_once(config, lambda found: Entry(GATE, "becomes champion", ONE, found.champion, ONE, "better"))
    run = RunRef("fingerprint", str(tmp_path), "digest", "run", "0123abc")
    found = RegisteredRef("1", run, FolderRef(str(tmp_path / "adapter"), None, ""), str(tmp_path / "base"), 300)
    monkeypatch.setattr(exports, "fetch_registered", lambda *_: found)
    monkeypatch.setattr(exports, "registered_settings", lambda *_: TRAINED_WITH)
    for part in ("registered_dataset", "open_folder", "load_training_data"):
        monkeypatch.setattr(exports, part, Mock())
    return found


def export(
    config: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
    *problems: str,
    rows: int | None = None,
    named: Mock | None = None,
) -> Mock:
    judged = Mock(return_value=(Path("out"), Verdict("transformers 5", Mock(spec=[]), list(problems))))
    monkeypatch.setattr(exports, "write_judged", judged)
    monkeypatch.setattr(exports, "give_name", named or Mock())
    monkeypatch.setattr(Verdict, "sentence", "58 of 60 decisions equal")
    exports.export_version(config, "1", Wanted("merged", "nf4", max_eval_rows=rows), Path("out"))
    return judged


def test_verdict_is_entered_and_leaves_the_champion(
    config: RunConfig, registered: RegisteredRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(config, monkeypatch, "two differ")
    entry = read_ledger(config).entries[-1]
    assert (entry.by, entry.outcome, entry.version) == (EXPORT, "exported as merged: NOT FIT TO SERVE", ONE)
    assert (entry.before, entry.after, entry.reason) == (ONE, ONE, "58 of 60 decisions equal")
    export(config, monkeypatch)
    assert read_ledger(config).entries[-1].outcome == "exported as merged: fit to serve"
    assert read_ledger(config).newest_change == 1
    version = named_version(config, "champion")
    assert version and "exported as merged: fit to serve (by export)" in str(version.tags)


def test_export_is_of_what_was_registered_and_evaluated(
    config: RunConfig, registered: RegisteredRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, kind, _, _, settings, _ = export(config, monkeypatch).call_args.args
    uri = f"models:/{config.registered_model_name}/1"
    places = Path(registered.adapter.path), Path(registered.base)
    assert source == Source(uri, *places, "Qwen/Qwen2.5-1.5B-Instruct", "0123abc", 300, "nf4")
    assert (kind, settings.eval_max_new_tokens, settings.max_eval_rows) == ("merged", 300, 70)
    assert settings.answer_audit is None, "its code may not be here"
    assert export(config, monkeypatch, rows=9).call_args.args[4].max_eval_rows == 9


def test_verdict_is_entered_before_the_export_has_its_name(
    config: RunConfig, registered: RegisteredRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the two, the same command judges again; the other way round, it would be refused."""
    with pytest.raises(KeyboardInterrupt):
        export(config, monkeypatch, named=Mock(side_effect=KeyboardInterrupt))
    assert read_ledger(config).entries[-1].outcome == "exported as merged: fit to serve"
