"""The gate holds among adapters that differ by their seed, and a planted defect is caught by the check meant for it."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import adapters, planted
from benchmarks.adapters import Bench, open_bench, trained
from benchmarks.gate_adapters import Pair, count, exchanged, judge, load, truth
from benchmarks.planted import (
    ANSWERS,
    LIMITS,
    NOTHING,
    NOTHING_ELSE,
    Caught,
    Rivals,
    judged,
    plant_in_answers,
    plant_in_models,
    plant_in_rows,
)
from training_core.evaluation.gate import BECOMES_CHAMPION
from training_core.evaluation.scores import Prediction

DEFECTS = {**ANSWERS, **LIMITS}
DECISIONS = ("Escalate", "In Progress", "Not Eligible")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return open_bench(tmp_path_factory.mktemp("bench"))


def answers(bench: Bench, right: float, seed: int) -> list[Prediction]:
    """The expected answers, except that so many have another decision, which is never in the customer's favour."""
    draws = np.random.default_rng(seed).random(len(bench.rows))
    found = []
    for row, blank, draw in zip(bench.rows, bench.baselines["majority"], draws, strict=True):
        expected = row.record["output"]
        wrong = next(decision for decision in DECISIONS if decision != expected["decision"])
        given = expected | ({} if draw < right else {"decision": wrong})
        found.append(judged(bench, row.record, blank, json.dumps(given)))
    return found


@pytest.fixture(scope="module")
def rivals(bench: Bench) -> Rivals:
    candidate, champion, base = (answers(bench, share, seed) for seed, share in enumerate((0.95, 0.7, 0.5)))
    return Rivals(Path("adapter"), candidate, champion, base)


def published() -> dict[str, Caught]:
    return {found["planted"]: Caught(**found) for found in load()["planted"]}


def test_few_promotions_among_real_adapters_were_false() -> None:
    results = load()
    assert results["about"]["adapters"] >= 24 and results["about"]["rows"]["held_out"] >= 100
    assert results["seeds"]["pairs"] >= 24 * 23 and results["exchanged"]["pairs"] >= 4 * 24 * 23
    assert results["truth"]["false"] <= 0.05 * results["seeds"]["pairs"]
    assert results["exchanged"]["promoted"] <= 0.05 * results["exchanged"]["pairs"]
    assert results["accuracy"]["seeds"][1] > results["accuracy"]["lookup table"], "weak adapters are never promoted"


def test_planted_defects_were_all_caught() -> None:
    found = published()
    assert {found.pop(name).outcome for name in (NOTHING, NOTHING_ELSE)} == {BECOMES_CHAMPION}
    assert len(found) >= 11 + 3
    assert BECOMES_CHAMPION not in {caught.outcome for caught in found.values()}
    assert all(caught.by and caught.sentence for caught in found.values())


def test_published_defects_were_caught_by_their_own_check() -> None:
    found = published()
    assert {name: found[name].by[0] for name in DEFECTS} == {name: row[2] for name, row in DEFECTS.items()}


def test_answers_with_a_planted_defect_are_caught(bench: Bench, rivals: Rivals) -> None:
    control = planted._caught(bench, rivals, NOTHING, "", rivals.candidate, "")
    assert (control.outcome, control.by) == (BECOMES_CHAMPION, ())
    found = {caught.planted: caught for caught in plant_in_answers(bench, rivals)}
    assert found.pop(NOTHING_ELSE).outcome == BECOMES_CHAMPION
    assert {name: caught.by[0] for name, caught in found.items()} == {name: row[2] for name, row in DEFECTS.items()}
    assert BECOMES_CHAMPION not in {caught.outcome for caught in found.values()}


def test_rows_whose_ids_leak_the_label_are_reported(bench: Bench, tmp_path: Path) -> None:
    found = plant_in_rows(bench, tmp_path)
    assert found.by == ("fields that reveal the decision",)
    assert "case_id (letters before the first digit): 100%" in found.sentence


def test_pairs_of_adapters_are_counted(bench: Bench, rivals: Rivals) -> None:
    one, two = (answers(bench, 0.7, seed) for seed in (5, 6))
    pairs = [(one, two), (two, one), (one, one), (rivals.candidate, one)]
    found = count(judge(bench, rivals.base, pairs))
    assert (found.pairs, found.promoted, found.significant) == (4, 1, 1)
    assert sum(found.outcomes.values()) == 4 and found.old_rule == 2
    assert found.differing[1] == 0.0


def test_exchanged_answers_are_of_equal_adapters(bench: Bench, rivals: Rivals) -> None:
    (found,) = exchanged([(rivals.candidate, rivals.base)], draws=1)
    for row, pair in enumerate(zip(*found, strict=True)):
        assert {id(answer) for answer in pair} == {id(rivals.candidate[row]), id(rivals.base[row])}
    right = [sum(answer.right for answer in some) for some in found]
    assert abs(right[0] - right[1]) < 40 < sum(a.right for a in rivals.candidate) - sum(a.right for a in rivals.base)


def test_promotion_without_a_gain_on_further_rows_is_false(bench: Bench, rivals: Rivals) -> None:
    pairs: list[Pair] = [(rivals.candidate, rivals.champion), (rivals.champion, rivals.candidate)]
    judged = judge(bench, rivals.base, pairs)
    assert [found.promoted for found in judged] == [True, False]
    assert truth(judged, [[True, True], [True, False]]).false == 0
    assert truth(judged, [[True, False], [True, False]]).false == 1


@pytest.mark.slow
def test_adapter_is_trained_once_and_edited_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = open_bench(tmp_path, lines=60, max_steps=1, eval_max_new_tokens=4, val_split=0.2)
    once = trained(bench)
    monkeypatch.setattr(adapters, "train_model", lambda *_: pytest.fail("trained again"))
    assert trained(bench) == once
    rivals = Rivals(once.adapter, once.answers, once.answers, adapters.base_answers(bench))
    found = {caught.planted: caught for caught in plant_in_models(bench, rivals, tmp_path / "planted")}
    assert found["no effect"].by[0] == "effect"
    refused = list(planted.plant_in_registered_files(bench, rivals, tmp_path / "planted"))
    assert [caught.outcome for caught in refused] == ["does not load"] * 2
    assert "adapter_model.safetensors" in refused[1].sentence
