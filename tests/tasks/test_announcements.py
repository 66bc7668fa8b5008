"""Which event a decision sends, and about which version."""

from dataclasses import replace

import pytest

from tasks import announcements
from tasks.announcements import CHAMPION_FAILING, PROMOTED, REJECTED, ROLLED_BACK, announce
from tasks.ledger import ALIAS, GATE, HAND, ROLLBACK, Entry, VersionId

ONE, TWO = VersionId("1", "one"), VersionId("2", "two")
WORSE = Entry(GATE, "stays candidate", TWO, ONE, ONE, "worse")


@pytest.mark.parametrize(
    ("entry", "event", "number"),
    [
        (Entry(GATE, "becomes champion", TWO, ONE, TWO), PROMOTED, "2"),
        (Entry(HAND, "becomes champion", TWO, ONE, TWO), PROMOTED, "2"),
        (Entry(HAND, "rejected", TWO, ONE, ONE, withdrawn=("two",)), REJECTED, "2"),
        (Entry(ROLLBACK, "becomes champion", ONE, TWO, ONE, withdrawn=("two",)), ROLLED_BACK, "1"),
        (Entry(ROLLBACK, "no champion", TWO, TWO, None, withdrawn=("two",)), ROLLED_BACK, "2"),
        (replace(WORSE, champion_failing=True), CHAMPION_FAILING, "1"),
        (WORSE, None, None),
        (Entry(ALIAS, "no champion", None, ONE, None), None, None),
    ],
)
def test_event_names_what_changed(
    entry: Entry, event: str | None, number: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[str, str]] = []
    monkeypatch.setattr(
        announcements,
        "emit_event",
        lambda event, resource, payload: sent.append((event, resource["prefect.resource.id"])),
    )
    announce("m", entry)
    assert sent == ([(event, f"sft-flow.model.m.{number}")] if event else [])
