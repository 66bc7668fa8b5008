"""Events on what was decided on a registered model; the automations of a Prefect server notify people of them."""

from typing import Final

from prefect.events import emit_event

from tasks.ledger import HAND, ROLLBACK, Entry
from training_core.escaping import shown

PROMOTED: Final = "sft-flow.promoted"
CHAMPION_FAILING: Final = "sft-flow.champion-failing"
ROLLED_BACK: Final = "sft-flow.rolled-back"
REJECTED: Final = "sft-flow.rejected"


def announce(name: str, entry: Entry) -> None:
    """Emit the event of a decision on the model of this name; none where nothing changed for anyone."""
    event = _event_of(entry)
    about = entry.before if event == CHAMPION_FAILING else entry.version
    if event and about and entry.version:
        by = f" (by {entry.who})" if entry.by in (HAND, ROLLBACK) else ""
        emit_event(
            event,
            resource={"prefect.resource.id": f"sft-flow.model.{name}.{about.number}"},
            payload={"verdict": shown(f"{name} version {entry.version.number} {entry.verdict}{by}")},
        )


def _event_of(entry: Entry) -> str | None:
    if entry.champion_failing:
        return CHAMPION_FAILING
    if entry.by == ROLLBACK:
        return ROLLED_BACK
    if entry.before != entry.after:
        return PROMOTED
    return REJECTED if entry.withdrawn else None
