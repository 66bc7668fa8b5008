"""The report on an evaluation is for a person who decides and was not there."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samples.cases import generate_rows, policy_text
from training_core.config import RunConfig
from training_core.evaluation.evidence import EvidenceRow, load_predictions, write_evidence_rows
from training_core.evaluation.gate import Verdict
from training_core.evaluation.handover import hand_over
from training_core.evaluation.page import PageFacts, render_report
from training_core.evaluation.scores import Prediction, score
from training_core.evaluation.text_scores import AnswerJudge
from training_core.evaluation.worst_rows import cited_section, limit_pairs, worst_rows

CONFIG = RunConfig()
RECORDS = [
    record for record in generate_rows(700, seed=4) if record["input"]["policy_document"] == policy_text("returns")
][:60]


def rows(records: list[dict[str, Any]]) -> list[EvidenceRow]:
    cases = [{k: v for k, v in record["input"].items() if k != "policy_document"} for record in records]
    return [
        EvidenceRow(i, "d1", record | {"input": case})
        for i, (record, case) in enumerate(zip(records, cases, strict=True))
    ]


def predictions(decisions: list[str], records: list[dict[str, Any]] = RECORDS) -> list[Prediction]:
    found = []
    for line, (record, decision) in enumerate(zip(records, decisions, strict=True)):
        judged = AnswerJudge().judge(record, text := json.dumps(record["output"] | {"decision": decision}))
        place = ("rows.jsonl", line, record["input"]["issue_type"], record["output"]["decision"])
        found.append(Prediction(*place, decision, judged.parsed, judged.usable, text, judged.text_scores))
    return found


def expected() -> list[str]:
    return [record["output"]["decision"] for record in RECORDS]


def spoilt(share: float, seed: int) -> list[str]:
    wrong = np.random.default_rng(seed).random(len(RECORDS)) < share
    return ["Eligible" if bad else own for own, bad in zip(expected(), wrong, strict=True)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    models = {
        name: predictions(spoilt(share, seed))
        for seed, (name, share) in enumerate(
            {"base": 0.8, "champion": 0.3, "candidate": 0.2, "lookup table": 0.6}.items()
        )
    }
    (tmp_path / "scores.json").write_text(
        json.dumps({name: asdict(score(own, CONFIG)) for name, own in models.items()})
    )
    (tmp_path / "comparison.json").write_text('{"left_out": 3}')
    for name, own in models.items():
        lines = "".join(json.dumps(asdict(found)) + "\n" for found in own)
        (tmp_path / f"predictions_{name.replace(' ', '_')}.jsonl").write_text(lines)
    write_evidence_rows(tmp_path, rows(RECORDS), {"d1": policy_text("returns")})
    return tmp_path


def test_report_page_opens_with_the_verdict(folder: Path) -> None:
    facts = PageFacts(
        "shop version 7", {"adapter": "abc123"}, [("seed", "1", "2")], [("sft-flow rollback shop", "undo")]
    )
    page = render_report(folder, CONFIG, facts)
    assert page.index("shop version 7: undecided") < page.index("Why: every check") < page.index("Decisions of the")
    for text in ("abc123", "sft-flow rollback shop", "Pairs around a limit", "3 more are left out", "newly approved"):
        assert text in page
    assert not any(outside in page for outside in ("http://", "https://", "<script", "url("))
    assert page == render_report(folder, CONFIG, facts)


def test_report_page_shows_a_given_verdict(folder: Path) -> None:
    page = render_report(folder, CONFIG, verdict=Verdict("becomes champion", "all is well", fresh_rows_wanted=True))
    assert "Candidate: becomes champion" in page and "all is well" in page and "Give fresh ones" in page


def test_report_page_says_what_the_training_took(folder: Path) -> None:
    assert "Cost of the training" not in render_report(folder, CONFIG)
    cost = {"steps": 1200, "resumed_from_step": 400, "final_loss": 0.25, "seconds": 3661.2, "peak_memory_gib": 10.5}
    (folder / "training.json").write_text(json.dumps(cost | {"tokens_before_sharing": 7_654_321}))
    page = render_report(folder, CONFIG)
    for text in ("1,200, resumed from step 400", "1:01:01 since", "10.50 GiB", "7,654,321 before sharing", "0.2500"):
        assert text in page


def test_report_page_names_the_threshold_that_the_version_is_served_with(folder: Path) -> None:
    file = folder / "predictions_candidate.jsonl"
    own = [json.loads(line) | {"confidence": 0.9} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(one) + "\n" for one in own))
    config = replace(CONFIG, max_automatic_error=0.005)
    found = hand_over(load_predictions(folder)["candidate"], range(len(own)), config)
    assert found
    other, same = (render_report(folder, config, PageFacts(served_threshold=x)) for x in (0.7654, found.threshold))
    assert "registered with 0.7654" in other and "registered with" not in same


def test_report_page_keeps_texts_as_texts(folder: Path) -> None:
    nasty = "<script>alert(1)</script>"
    changed = [replace(row, record=row.record | {"input": {"note": nasty}}) for row in rows(RECORDS)]
    write_evidence_rows(folder, changed, {"d1": nasty})
    page = render_report(folder, CONFIG)
    assert nasty not in page and "&lt;script&gt;" in page


def test_worst_rows_show_new_false_approvals_first() -> None:
    refusals = [i for i, decision in enumerate(expected()) if decision != "Eligible"]
    granted, known, unread = refusals[10], refusals[3], refusals[0]
    candidate, champion = expected(), expected()
    candidate[granted] = candidate[known] = champion[known] = "Eligible"
    own = predictions(candidate)
    own[unread] = replace(own[unread], usable=False, decision="(no decision)")
    found = worst_rows(rows(RECORDS), own, predictions(champion), {"d1": policy_text("returns")}, CONFIG)
    assert [item.row.tie for item in found] == [granted, known, unread]
    assert [item.kind for item in found] == [
        "newly approved against the policy",
        "approved against the policy",
        "not usable",
    ]


def test_worst_rows_show_the_policy_section_of_the_answer() -> None:
    row = rows(RECORDS)[0]
    number = row.record["output"]["reason"].rpartition("section ")[2].rstrip(").")
    section = cited_section(policy_text("returns"), row)
    assert section.startswith(f"{number}. ") and f"\n{int(number) + 1}. " not in section
    assert cited_section("no sections here", row) == ""


def test_limit_pairs_are_one_apart_and_expect_other_decisions() -> None:
    case = {"issue_type": "refund_request", "days": 30, "worn": False}
    output = {"reason": "r", "customer_response": "c", "next_action": "n"}
    records = [
        {"input": case | {"days": days}, "output": {"decision": decision} | output}
        for days, decision in ((31, "Not Eligible"), (30, "Eligible"), (45, "Not Eligible"), (29, "Eligible"))
    ]
    given = predictions(["Eligible", "Eligible", "Eligible", "Eligible"], records)
    (pair,) = limit_pairs(rows(records), given, given)
    assert (pair.field, pair.values) == ("days", (30, 31))
    assert [own.right for own in pair.candidate] == [True, False]
