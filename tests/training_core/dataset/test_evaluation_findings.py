"""What would make an evaluation misleading is said before anything is trained."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from row_samples import Built, Record, build, record, records, write
from transformers import PreTrainedTokenizerFast

from samples.cases import generate_rows
from training_core.config import RunConfig
from training_core.dataset.evaluation_findings import CaseFields, accuracy_alone, evaluation_findings
from training_core.model_setup import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(tiny_base)


@pytest.fixture
def built_from(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Any:
    def make(rows: list[Record], **settings: Any) -> Built:
        return build(write(tmp_path / "rows.jsonl", rows), tokenizer, **{"entity_fields": ("case_id",)} | settings)

    return make


def places(built: Built, subject: str) -> list[str]:
    finding = built.finding(subject)
    return finding.places if finding else []


def test_findings_name_the_gain_that_rows_can_show(built_from: Any) -> None:
    rows = records(300)
    found = built_from(rows, val_split=0.5).finding("rows to be answered")
    assert found.count == 150 and "a gain in accuracy of 7.8 points in 80% of comparisons" in found.meaning
    few = built_from(rows, val_split=0.5, max_eval_rows=30).finding("rows to be answered")
    assert few.count == 30
    assert "too few to show any gain" in few.meaning and "fewer than 100 (min_eval_rows)" in few.meaning


def test_findings_name_an_unknown_group_field(built_from: Any) -> None:
    answer = {"role": "assistant", "content": json.dumps(record()["output"])}
    rows = [{"messages": [{"role": "user", "content": f"Question {i}."}, answer]} for i in range(20)]
    built = built_from(rows, entity_fields=())
    assert built.report.failures == []
    assert places(built, "fields that no row has") == ["group_by: issue_type"]
    assert built.report.case_fields == []


def test_unknown_entity_and_slice_fields_are_reported(built_from: Any) -> None:
    built = built_from(records(20), entity_fields=("case_id", "user_id"), slice_fields=("country", "issue_type"))
    assert places(built, "fields that no row has") == ["entity_fields: user_id", "slice_fields: country"]
    assert sorted(built.report.case_fields) == ["case_id", "issue_type"]


def test_decisions_in_several_spellings_are_reported(built_from: Any) -> None:
    other = [record({"case_id": f"B-{i}"}, {"decision": "eligible "}) for i in range(3)]
    assert places(built_from([*records(20), *other]), "decisions in several spellings") == [
        "'Eligible' (20 rows) = 'eligible ' (3 rows)"
    ]
    assert places(built_from(records(20)), "decisions in several spellings") == []


@pytest.mark.parametrize(
    "other", ["eligible", "Eligible.", " Eligible", "ELIGIBLE", "Eli gible", "Eligible!", "Ｅligible"]
)
def test_decision_that_only_looks_alike_is_another_spelling(built_from: Any, other: str) -> None:
    rows = [*records(20), *(record({"case_id": f"B-{i}"}, {"decision": other}) for i in range(3))]
    (place,) = places(built_from(rows), "decisions in several spellings")
    assert place == f"'Eligible' (20 rows) = {other!r} (3 rows)"


@pytest.mark.parametrize("other", ["Not Eligible", "Eligible 2", "?"])
def test_other_decisions_are_no_spellings(built_from: Any, other: str) -> None:
    rows = [*records(20), *(record({"case_id": f"B-{i}"}, {"decision": other}) for i in range(3))]
    assert places(built_from(rows), "decisions in several spellings") == []


def test_decisions_without_held_out_rows_are_reported(built_from: Any) -> None:
    """Two rows of one customer stay together, and are never held out among so few."""
    tied = [record({"case_id": f"C-{i}", "user_id": 7}, {"decision": "Escalate"}) for i in range(9)]
    built = built_from([*records(20), *tied], entity_fields=("user_id",), val_split=0.1)
    assert places(built, "decisions without held-out rows") == ["Escalate: 9 trained rows"]


def test_answers_longer_than_evaluated_are_reported(built_from: Any) -> None:
    rows = [*records(20), record({"case_id": "L"}, {"reason": "far too long a reason " * 30})]
    finding = built_from(rows, eval_max_new_tokens=100, val_split=0.9).finding("answers longer than evaluated")
    assert finding.count == 1 and ":21: " in finding.places[0]
    assert "more than 100 tokens (eval_max_new_tokens)" in finding.meaning
    assert built_from(rows).finding("answers longer than evaluated") is None


def leaking(prefix: dict[str, str]) -> CaseFields:
    fields = CaseFields()
    for place, row in enumerate(generate_rows(400, seed=5)):
        letter = prefix.get(row["output"]["decision"], "X")
        fields.add(row | {"input": row["input"] | {"order_id": f"{letter}{7919 * place % 99991}"}})
    return fields


@pytest.mark.parametrize("leaks", [True, False])
def test_findings_name_an_id_that_reveals_the_decision(leaks: bool) -> None:
    letters = {"Eligible": "A", "Escalate": "B", "In Progress": "C", "Not Eligible": "D"} if leaks else {}
    no_rows = pd.DataFrame({name: [] for name in ("split", "decision", "answer_tokens", "file", "line")})
    findings = evaluation_findings(RunConfig(), leaking(letters), no_rows)
    (found,) = [finding for finding in findings if finding.subject == "fields that reveal the decision"]
    assert found.places == (["order_id (letters before the first digit): 100%"] if leaks else [])


def test_accuracy_alone_leaves_the_row_itself_out() -> None:
    """A value seen once says nothing; of three rows of one value two agree, and stay ahead without one of them."""
    assert accuracy_alone(Counter({(str(i), "Yes"): 1 for i in range(9)})) == 0
    assert accuracy_alone(Counter({("a", "Yes"): 3, ("a", "No"): 1})) == 3 / 4
    assert accuracy_alone(Counter({("a", "Yes"): 2, ("a", "No"): 1})) == 0
    assert accuracy_alone(Counter()) == 0
