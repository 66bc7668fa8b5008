"""A promotion is earned."""

from tasks.refs import EvalReport, FolderRef
from tasks.registration import judge


def report(candidate: float, champion: float | None = None, given_away: tuple[float, float] = (0.1, 0.1)) -> EvalReport:
    accuracy = {"base": 0.3, "candidate": candidate, "majority": 0.29, "lookup": 0.42}
    favourable = dict.fromkeys(accuracy, 0.2) | {"candidate": given_away[0]}
    if champion is not None:
        accuracy["champion"], favourable["champion"] = champion, given_away[1]
    return EvalReport(FolderRef("folder", None, "digest"), 100, accuracy, favourable)


def test_the_first_adapter_ahead_of_base_and_baselines_becomes_champion() -> None:
    assert judge(report(0.6), 0.0) == (True, "becomes champion: 60.0% of decisions right, the lookup has 42.0%")


def test_an_adapter_no_better_than_a_lookup_table_stays_candidate() -> None:
    earned, verdict = judge(report(0.42), 0.0)
    assert not earned
    assert "42.0%" in verdict and "lookup" in verdict


def test_an_adapter_must_beat_the_champion_by_more_than_the_margin() -> None:
    assert not judge(report(0.62, champion=0.6), 0.03)[0]
    assert judge(report(0.64, champion=0.6), 0.03)[0]


def test_an_adapter_that_gives_more_away_than_the_champion_stays_candidate() -> None:
    earned, verdict = judge(report(0.7, champion=0.6, given_away=(0.2, 0.1)), 0.0)
    assert not earned
    assert "20.0%" in verdict and "10.0%" in verdict
