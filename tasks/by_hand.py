"""Decisions that a person takes: a version promoted or rejected, or the champion rolled back. Needs neither torch nor
Prefect.
"""

from tasks.commands import registry_command
from tasks.ledger import HAND, ROLLBACK, Entry, Ledger, VersionId
from tasks.tracking import FINGERPRINT_TAG
from tasks.versions import decide_once, existing, named_version, version_id
from training_core.config import RunConfig, SettingsError

NONE = "none"


def promote_by_hand(config: RunConfig, number: str, reason: str) -> Entry:
    """Make a version champion. A training that was withdrawn may be promoted by runs again after this.

    Raises ``SettingsError`` when there is no such version, sft-flow did not register it, or it is the champion.
    """
    own = _required_version(config, number)

    def entry_of(ledger: Ledger) -> Entry:
        if ledger.champion == own:
            raise SettingsError(
                [f"version: {config.registered_model_name} version {own.number} is the champion already"]
            )
        return Entry(HAND, "becomes champion", own, ledger.champion, own, reason)

    return _written(decide_once(config, entry_of))


def reject_by_hand(config: RunConfig, number: str, reason: str) -> Entry:
    """Withdraw a version that is not champion: no run promotes its training.

    Raises ``SettingsError`` when there is no such version, sft-flow did not register it, it is withdrawn already, or it
    is the champion.
    """
    own, name = _required_version(config, number), config.registered_model_name

    def entry_of(ledger: Ledger) -> Entry:
        if ledger.champion == own:
            fix = registry_command(config, "rollback", name, with_reason=True)
            raise SettingsError([f"version: {name} version {own.number} is the champion; withdraw it: {fix}"])
        if before := ledger.withdrawn.get(own.fingerprint):
            what = f"version: {name} version {own.number} is withdrawn already, by decision {before.number}"
            raise SettingsError([f"{what}; see {registry_command(config, 'history', name)}"])
        return Entry(HAND, "rejected", own, ledger.champion, ledger.champion, reason, withdrawn=(own.fingerprint,))

    return _written(decide_once(config, entry_of))


def roll_back(config: RunConfig, to: str | None, reason: str) -> Entry:
    """Return to an earlier champion: the last one, the version ``to``, or with ``"none"`` no champion at all.

    The champion and those between are withdrawn: no run promotes their trainings again. Raises ``SettingsError`` when
    there is nothing to return to.
    """
    named = _required_version(config, to) if to not in (None, NONE) else None

    def entry_of(ledger: Ledger) -> Entry:
        after = named or (_last_champion(config, ledger) if to is None else None)
        if ledger.champion == after:
            state = f"version {after.number} is the champion already" if after else "there is no champion"
            raise SettingsError([f"registered_model_name: {config.registered_model_name}: {state}"])
        return Entry(
            by=ROLLBACK,
            outcome="becomes champion" if after else "no champion",
            version=after or ledger.champion,
            before=ledger.champion,
            after=after,
            reason=reason,
            withdrawn=tuple(one.fingerprint for one in _withdrawn_by(ledger, after) if one.fingerprint),
        )

    return _written(decide_once(config, entry_of))


def _required_version(config: RunConfig, number: str | None) -> VersionId:
    name, version = config.registered_model_name, named_version(config, number or "")
    own = version_id(version)
    if version is None or own is None:
        fix = registry_command(config, "versions", name)
        raise SettingsError([f"version: {name} has no version or alias {number!r}; see what is there: {fix}"])
    if not own.fingerprint:
        what = (
            f"version: {name} version {own.number} was not registered by sft-flow: it lacks the tag {FINGERPRINT_TAG}"
        )
        raise SettingsError([f"{what}; no candidate could be compared with it"])
    return own


def _last_champion(config: RunConfig, ledger: Ledger) -> VersionId:
    found = next((one for one in reversed(ledger.earlier_champions) if existing(config, one)), None)
    if found is None:
        fix = "name a version: --to VERSION, or leave none: --to none"
        raise SettingsError([f"version: {config.registered_model_name} has no earlier champion; {fix}"])
    return found


def _withdrawn_by(ledger: Ledger, after: VersionId | None) -> list[VersionId]:
    """The champion, and with a version to return to also those that were champion after it."""
    champion = [ledger.champion] if ledger.champion else []
    earlier = ledger.earlier_champions
    return [*(earlier[earlier.index(after) + 1 :] if after in earlier else []), *champion]


def _written(entry: Entry | None) -> Entry:
    assert entry
    return entry
