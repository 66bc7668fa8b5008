"""How far a model that runs elsewhere decides as the registered adapter did, on the same held-out rows."""

from collections.abc import Sequence
from dataclasses import dataclass

from training_core.config import RunConfig
from training_core.evaluation.scores import Prediction, score

LEAST_EQUAL = 0.99


@dataclass(frozen=True)
class Agreement:
    """Two models' answers to the same rows, compared.

    ``equal`` counts rows with the same decision, or with no usable answer from either. ``judged_false_approvals`` and
    ``false_approvals`` are shares of all rows, of the registered adapter and of the other; so are ``judged_usable`` and
    ``usable``. ``differing`` pairs the predictions of the other rows: the registered adapter's first.
    """

    rows: int
    equal: int
    judged_false_approvals: float
    false_approvals: float
    judged_usable: float
    usable: float
    differing: list[tuple[Prediction, Prediction]]

    @property
    def decides_alike(self) -> bool:
        """Whether at least 99% of the decisions are equal."""
        return self.equal >= LEAST_EQUAL * self.rows

    @property
    def approves_no_more(self) -> bool:
        """Whether false approvals have not risen."""
        return self.false_approvals <= self.judged_false_approvals

    @property
    def problems(self) -> list[str]:
        """Why the other model may not stand for the judged one; none where it may."""
        found = []
        if not self.decides_alike:
            share = f"{self.equal} of {self.rows} ({self.equal / self.rows:.1%})"
            found.append(f"expected equal decisions in at least {LEAST_EQUAL:.0%} of the rows, got {share}")
        if not self.approves_no_more:
            shares = f"{self.judged_false_approvals:.1%} to {self.false_approvals:.1%}"
            found.append(f"expected no more false approvals than the registered adapter has, they rose from {shares}")
        return found


def compare_decisions(judged: Sequence[Prediction], other: Sequence[Prediction], config: RunConfig) -> Agreement:
    """Compare predictions of the same rows in the same order; raises ``ValueError`` when there are none or rows differ.

    ``config`` says which decisions are in the customer's favour.
    """
    pairs = list(zip(judged, other, strict=True))
    if moved := [(a, b) for a, b in pairs if (a.file, a.line) != (b.file, b.line)]:
        first, second = moved[0]
        raise ValueError(f"expected the same rows, got {first.file}:{first.line} and {second.file}:{second.line}")
    differing = [(a, b) for a, b in pairs if a.decision != b.decision]
    before, after = score(judged, config), score(other, config)
    return Agreement(
        rows=len(pairs),
        equal=len(pairs) - len(differing),
        judged_false_approvals=before.false_approvals,
        false_approvals=after.false_approvals,
        judged_usable=before.usable,
        usable=after.usable,
        differing=differing,
    )
