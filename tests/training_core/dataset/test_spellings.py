"""What an export spells in another way is the same; what means another thing is not."""

from itertools import combinations

import pytest

from training_core.dataset.spellings import decision_text, id_text


@pytest.mark.parametrize(
    "same",
    [
        ("12000", "12000.0", "1.2E+04", "1.2e4", "12E+03", "'12000", "012000"),
        ("12E3", "12e3", " 12E3 "),
        ("7", "007", "7.0"),
        ("-5", "\u22125", "-5.0"),
    ],
)
def test_id_is_the_same_in_every_spelling_of_an_export(same: tuple[str, ...]) -> None:
    assert len(set(map(id_text, same))) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [("12E3", "12000"), ("2E10", "20000000000"), ("1e0", "1"), ("12E3", "12E4"), ("5", "-5"), ("1.5", "15")],
)
def test_ids_of_strangers_differ(one: str, other: str) -> None:
    assert id_text(one) != id_text(other)


@pytest.mark.parametrize(
    "same",
    [
        ("Not Eligible", "not_eligible", "NotEligible.", "not-eligible", "\u201cNot eligible\u201d"),
        (">= 30", ">=30", "\u2265 30", "\uff1e=30"),
        ("A+", "a +", "A+ ", "\uff21\uff0b"),
        ("A-", "A\u2212", "a -"),
        ("\u2260 3", "!=3"),
    ],
)
def test_decision_is_the_same_in_every_spelling(same: tuple[str, ...]) -> None:
    assert len(set(map(decision_text, same))) == 1


@pytest.mark.parametrize("others", [(">30", "<30", ">=30", "<=30", "=30", "!=30", "30"), ("A", "A+", "A-", "A++")])
def test_decisions_of_another_meaning_differ(others: tuple[str, ...]) -> None:
    assert all(decision_text(one) != decision_text(other) for one, other in combinations(others, 2))
