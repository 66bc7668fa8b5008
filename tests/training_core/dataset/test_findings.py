"""Findings of the report, and failures that make rows unfit to train on."""

from pathlib import Path
from typing import Any

import pytest
from row_samples import Built, Record, build, record, records, to_line, with_policy, write
from transformers import PreTrainedTokenizerFast

from samples.cases import audit, generate_rows
from samples.rulebook import DECISIONS
from training_core.dataset.findings import _bin_edges
from training_core.model_setup import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(tiny_base)


@pytest.fixture
def built_from(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Any:
    def make(*rows: Record | bytes, **settings: Any) -> Built:
        return build(write(tmp_path / "rows.jsonl", rows), tokenizer, **settings)

    return make


def count(built: Built, subject: str) -> int:
    finding = built.finding(subject)
    return finding.count if finding else 0


def lines(built: Built, subject: str) -> list[str]:
    """The line numbers in the places of a finding."""
    finding = built.finding(subject)
    assert finding
    return ["=".join(part.split(": ")[0].rpartition(":")[2] for part in place.split(" = ")) for place in finding.places]


def test_report_on_clean_rows_has_no_findings_or_failures(built_from: Any) -> None:
    built = built_from(*records(20), entity_fields=("case_id",))
    assert [finding.subject for finding in built.report.findings] == ["rows to be answered"]
    assert built.report.failures == []


def test_exact_duplicates_are_found_in_any_spelling(built_from: Any) -> None:
    """Order of keys, escapes and white space do not matter, also around the policy; a different answer does."""
    first, *others = records(8)
    turned = {name: dict(reversed(v.items())) if isinstance(v, dict) else v for name, v in first.items()}
    spelled = [turned, to_line(first).replace(b'": ', b'" :\t'), with_policy(first, "\nWithin 30 days. ")]
    contradiction = record({"case_id": "A-0"}, {"decision": "Not Eligible"})
    built = built_from(first, *others, *spelled, contradiction)
    assert built.report.accounts[0].duplicates == count(built, "exact duplicates") == 3
    assert lines(built, "exact duplicates") == ["1=9=10=11"]
    assert {c.decision: c.trained + c.held_out for c in built.report.decisions} == {"Eligible": 8, "Not Eligible": 1}


def test_conflicting_answers_are_listed_with_all_places(built_from: Any) -> None:
    conflict = [record({"case_id": "A-1"}, {"decision": decision}) for decision in ("Escalate", "Not Eligible")]
    other_policy = with_policy(record({"case_id": "A-2"}, {"decision": "Escalate"}), "Another policy.")
    built = built_from(*records(6), *conflict, other_policy)
    assert count(built, "conflicting answers") == 2
    assert lines(built, "conflicting answers") == ["2=7=8"]


def test_near_duplicate_cases_are_found_but_digits_count(built_from: Any) -> None:
    """Near-duplicate filters that mask digits merge cases with opposite labels."""
    notes = ["Parcel late, 12 days!", "PARCEL LATE - 12 days", "Parcel late, 13 days!", "Parcel late, 1.2 days!"]
    signs = [record({"case_id": f"S-{i}", "balance": value}) for i, value in enumerate([5, -5])]
    built = built_from(*(record({"note": note}) for note in notes), *signs, *records(4, start=50))
    assert lines(built, "near-duplicate cases") == ["1=2"]
    assert count(built, "conflicting answers") == 0


def test_rare_decisions_and_unknown_keys_are_findings(built_from: Any) -> None:
    rare = record({"case_id": "A-99"}, {"decision": "Perhaps"})
    built = built_from(*records(9), rare | {"id": 1}, record({"case_id": "A-100"}) | {"id": 2, "Meta\n": {}})
    finding = built.finding("rare decisions")
    assert finding and finding.places == ["Perhaps: 1"]
    keys = built.finding("unknown keys")
    assert keys and keys.count == 2
    assert {place.split(":")[0] for place in keys.places} == {"id", "Meta\\n"}
    assert next(place for place in keys.places if place.startswith("id")).endswith("rows.jsonl:10")


def test_allowed_decisions_reject_any_other_decision(built_from: Any) -> None:
    odd = record({"case_id": "A-99"}, {"decision": "eligible"})
    built = built_from(*records(9), odd, allowed_decisions=("Eligible", "Escalate"))
    (problem,) = built.report.problems
    assert (problem.line, problem.field) == (10, "output.decision")
    assert "Eligible, Escalate" in problem.fix


def test_lengths_match_the_tokens_of_the_rows(built_from: Any) -> None:
    built = built_from(*records(20), *records(3))
    tokens = [len(row["input_ids"]) for row in built.rows]
    lengths = built.report.lengths
    assert (sum(lengths.counts), len(lengths.edges)) == (20, len(lengths.counts) + 1)
    assert lengths.edges[0] == min(tokens) and lengths.percentiles["100"] == max(tokens)
    assert lengths.percentiles["50"] == sorted(tokens)[10]


@pytest.mark.parametrize(
    ("longest", "limit", "last_edges"),
    [(1_000, 2_048, [975, 1000, 1025]), (5_000, 512, [980, 1000, 5001]), (5_000, 2_048, [980, 1000, 2049, 5001])],
)
def test_bin_edges_match_their_worked_example(longest: int, limit: int, last_edges: list[int]) -> None:
    edges = _bin_edges(700, 980, longest, limit)
    assert edges[0] == 700
    assert edges[-len(last_edges) :] == last_edges


AUDIT = "samples.cases:audit"


def test_label_audit_finds_exactly_the_planted_contradictions(built_from: Any) -> None:
    rows = list(generate_rows(200, seed=2))
    planted = range(0, 200, 7)
    for place in planted:
        right = rows[place]["output"]["decision"]
        rows[place]["output"]["decision"] = DECISIONS[(DECISIONS.index(right) + 1) % len(DECISIONS)]
    built = built_from(*rows, label_audit=AUDIT)
    finding = built.finding("labels that contradict the rules")
    assert finding and finding.count == len(planted)
    assert "of 200 rows" in finding.meaning
    assert lines(built, "labels that contradict the rules") == [str(place + 1) for place in planted][:20]


@pytest.mark.parametrize("fact", ["issue_type", "days_since_delivery", "item_condition"])
@pytest.mark.parametrize("value", [None, ..., "x", [], {}, "seven"])
def test_label_audit_skips_cases_with_missing_facts(fact: str, value: object) -> None:
    row = next(row for row in generate_rows(200, seed=2) if "days_since_delivery" in row["input"])
    assert audit(row | {"input": row["input"] | {"policy_document": row["input"]["policy_document"].strip()}})
    case = row["input"] | {"policy_document": row["input"]["policy_document"].strip(), fact: value}
    if value is ...:
        del case[fact]
    assert audit(row | {"input": case}) in (None, *DECISIONS)


def test_label_audit_skips_rows_without_a_known_policy(built_from: Any) -> None:
    conversation = {"messages": [{"role": "user", "content": "x"}], "output": record()["output"]}
    assert audit(record()) is audit(conversation) is None
    assert count(built_from(*records(20), label_audit=AUDIT), "labels that contradict the rules") == 0


def test_max_refused_share_applies_to_each_file(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = write(tmp_path / "rows.jsonl", [*records(8), b"{", b"["])
    held_out = write(tmp_path / "held_out.jsonl", [b"3"])
    assert build(rows, tokenizer, max_refused_share=0.2).report.failures == []
    report = build(rows, tokenizer, max_refused_share=0.19, eval_path=held_out).report
    assert [failure.split(":")[0] for failure in report.failures[:2]] == [held_out, rows]
    assert "at most 19% rejected lines (max_refused_share), got 2 of 10; fix them" in report.failures[1]
    assert "got 1 of 1; fix them" in report.failures[0]
    assert [(problem.file, problem.line) for problem in report.problems] == [(held_out, 1), (rows, 9), (rows, 10)]


@pytest.mark.parametrize("content", [b"", b"\n", b"{}\n"])
def test_file_without_rows_is_a_failure(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, content: bytes) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    assert "expected usable rows in" in build(tmp_path / "rows.jsonl", tokenizer).report.failures[0]


def test_empty_split_is_a_failure(built_from: Any) -> None:
    assert any("max_seq_length" in failure for failure in built_from(*records(3), max_seq_length=16).report.failures)
    assert any("val_split" in failure for failure in built_from(*records(3), val_split=0).report.failures)
