"""Whether an adapter becomes champion: the rule alone, apart from registry and flow."""

from dataclasses import dataclass, field
from typing import Final

from training_core.config import RunConfig
from training_core.evaluation.comparison import Evidence
from training_core.evaluation.scores import Scores, score

BECOMES_CHAMPION: Final = "becomes champion"
STAYS_CANDIDATE: Final = "stays candidate"
UNDECIDED: Final = "undecided"

GATE_SETTINGS = ("min_improvement", "favourable_decisions", "require_approval")


@dataclass(frozen=True)
class Verdict:
    """``outcome`` is one of the three above; ``reason`` says why in one line, ``paragraphs`` at length."""

    outcome: str
    reason: str
    paragraphs: tuple[str, ...] = ()
    p_values: dict[str, float] = field(default_factory=dict)
    champion_failing: bool = False

    def __str__(self) -> str:
        return f"{self.outcome}: {self.reason}"


def decide(evidence: Evidence, config: RunConfig, versions_judged: int = 0, versions_promoted: int = 0) -> Verdict:
    """The verdict on the candidate from the predictions of all evaluated models on the same rows, in the same order.

    The candidate must be right more often than every other by more than ``min_improvement``, and must not approve
    against the policy more often than the champion does.
    """
    scores = {name: score(found, config) for name, found in evidence.predictions.items()}
    candidate = scores["candidate"]
    best = max((name for name in scores if name != "candidate"), key=lambda name: scores[name].accuracy)
    reason = f"{candidate.accuracy:.1%} of decisions right, the {best} has {scores[best].accuracy:.1%}"
    failing = "champion" in scores and scores["champion"].accuracy <= scores["lookup table"].accuracy
    if candidate.accuracy <= scores[best].accuracy + config.min_improvement:
        return Verdict(STAYS_CANDIDATE, reason, champion_failing=failing)
    if "champion" in scores and candidate.false_approvals > scores["champion"].false_approvals:
        return Verdict(STAYS_CANDIDATE, _more_approvals(candidate, scores["champion"]))
    return Verdict(BECOMES_CHAMPION, reason)


def is_failing(evidence: Evidence, config: RunConfig, model: str) -> bool:
    """Whether a model is not better than base and lookup table."""
    scores = {name: score(found, config).accuracy for name, found in evidence.predictions.items()}
    return scores[model] <= max(scores["base"], scores["lookup table"])


def _more_approvals(candidate: Scores, champion: Scores) -> str:
    return f"false approvals in {candidate.false_approvals:.1%} of the cases, champion {champion.false_approvals:.1%}"
