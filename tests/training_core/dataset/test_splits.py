"""Every row has one split, held-out rows do not leak into training, and the split is stable."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from row_samples import Built, Record, build, record, records, with_policy, write
from transformers import PreTrainedTokenizerFast

from training_core.config import RunConfig
from training_core.data_loader import load_jsonl
from training_core.dataset.encoding import leakage_keys
from training_core.dataset.splits import DUPLICATE, HELD_OUT, OVERLONG, TRAINED, assign_splits, hold_out, overlapping
from training_core.evaluation.scores import prompt_of
from training_core.model_setup import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(tiny_base)


NEAR_DUPLICATE, ENTITY = 10**9, 2 * 10**9  # offsets that keep digests of different things apart
Tables = tuple[pd.DataFrame, pd.DataFrame]


def tables(rows: list[dict[str, Any]]) -> Tables:
    """Facts and entities of rows that are given as ``case`` and what differs from the defaults."""
    facts = pd.DataFrame(
        {
            "row": row.get("row", 10**6 + place),
            "case": row["case"],
            "near_duplicate_key": row.get("near_duplicate_key", row["case"]) + NEAR_DUPLICATE,
            "split_rank": (row["case"] + 1) * 0x9E3779B97F4A7C15 % 2**64,  # spreads like a digest
            "decision": row.get("decision", "A"),
            "tokens": row.get("tokens", 10),
            "held_out_file": row.get("held_out_file", False),
        }
        for place, row in enumerate(rows)
    ).astype(dict.fromkeys(("row", "case", "near_duplicate_key", "split_rank"), "uint64"))
    found = [(place, entity + ENTITY) for place, row in enumerate(rows) for entity in row.get("entities", ())]
    return facts, pd.DataFrame(found, columns=["row", "entity"], dtype="uint64")


some_rows = st.lists(
    st.fixed_dictionaries(
        {"case": st.integers(0, 60), "decision": st.sampled_from("AAAABBC")},
        optional={"entities": st.lists(st.integers(0, 30), max_size=2), "near_duplicate_key": st.integers(0, 60)},
    ),
    min_size=1,
    max_size=80,
)


@given(rows=some_rows, share=st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9]))
@settings(max_examples=30, deadline=None)
def test_hold_out_never_divides_a_case_or_entity(rows: list[dict[str, Any]], share: float) -> None:
    facts, entities = tables(rows)
    held_out = hold_out(facts, entities, share)
    assert held_out.index.equals(facts.index)
    for column in ("case", "near_duplicate_key"):
        assert (held_out.groupby(facts[column]).nunique() <= 1).all()
    assert (held_out[entities["row"].astype(int)].groupby(entities["entity"].to_numpy()).nunique() <= 1).all()


@given(sizes=st.lists(st.tuples(st.integers(1, 6), st.sampled_from("ABC")), min_size=1, max_size=60))
@settings(max_examples=30, deadline=None)
def test_hold_out_meets_the_share_within_half_a_group(sizes: list[tuple[int, str]]) -> None:
    rows = [{"case": case, "decision": name} for case, (size, name) in enumerate(sizes) for _ in range(size)]
    facts, entities = tables(rows)
    held_out = hold_out(facts, entities, 0.3)
    by_decision = facts["decision"].value_counts()
    for name, count in by_decision[by_decision * 0.3 >= 1].items():
        largest = max(size for size, decision in sizes if decision == name)
        assert abs(held_out[facts["decision"] == name].sum() - 0.3 * count) <= largest / 2 + 1e-9


@given(rows=some_rows, order=st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_hold_out_does_not_depend_on_row_order(rows: list[dict[str, Any]], order: Any) -> None:
    shuffled = order.sample(range(len(rows)), len(rows))
    before = hold_out(*tables(rows), 0.3)
    after = hold_out(*tables([rows[place] for place in shuffled]), 0.3)
    assert [bool(before[place]) for place in shuffled] == after.tolist()


def test_hold_out_matches_its_worked_example() -> None:
    groups = {"C": (11, 2), "A": (35, 3), "B": (62, 4), "D": (90, 1)}
    facts, entities = tables([{"case": place} for place, (_, size) in enumerate(groups.values()) for _ in range(size)])
    facts["split_rank"] = [rank for rank, size in groups.values() for _ in range(size)]
    assert hold_out(facts, entities, 0.4).tolist() == [True] * 5 + [False] * 5


def test_hold_out_draws_rare_decisions_together() -> None:
    rows = [{"case": case, "decision": f"rare {case}"} for case in range(100)]
    assert 8 <= hold_out(*tables(rows), 0.1).sum() <= 12


def test_hold_out_keeps_chains_of_entities_together() -> None:
    chain = [{"case": case, "entities": [case, case + 1]} for case in range(50)]
    alone = [{"case": 1000 + case} for case in range(50)]
    held_out = hold_out(*tables([*chain, *alone]), 0.2)
    assert held_out[:50].nunique() == 1


def test_hold_out_keeps_near_duplicate_cases_together() -> None:
    pairs = [{"case": place, "near_duplicate_key": place // 2} for place in range(40)]
    facts, entities = tables(pairs)
    held_out = hold_out(facts, entities, 0.5)
    assert 0 < held_out.sum() < len(held_out)
    assert (held_out.groupby(facts["near_duplicate_key"]).nunique() == 1).all()


def test_duplicate_rows_are_duplicates_even_if_overlong() -> None:
    rows = [
        {"case": 1, "row": 5},
        {"case": 1, "row": 5, "tokens": 9999},  # equal rows have equal lengths, but duplicate comes first
        {"case": 2, "tokens": 9999},
        {"case": 3},
    ]
    config = RunConfig(max_seq_length=100, val_split=0.5)
    splits = assign_splits(config, *tables(rows))
    assert splits[[1, 2]].tolist() == [DUPLICATE, OVERLONG]
    assert set(splits[[0, 3]]) <= {TRAINED, HELD_OUT}


def test_overlapping_names_row_before_case_before_entity() -> None:
    held_out = {"case": 1, "near_duplicate_key": 100, "row": 5, "entities": [7], "held_out_file": True}
    rows = [
        held_out,
        held_out | {"held_out_file": False},
        {"case": 1, "near_duplicate_key": 100},
        {"case": 2, "near_duplicate_key": 100},
        {"case": 3, "entities": [7]},
        {"case": 4, "entities": [8]},
    ]
    assert overlapping(*tables(rows)).fillna("").tolist() == ["", "row", "case", "case", "entity", ""]


def held_out_cases(built: Built, rows: list[Record]) -> dict[str, bool]:
    """Whether each case is held out, by its id."""
    return {row["input"]["case_id"]: line in built.lines[1] for line, row in enumerate(rows, 1)}


def test_split_of_most_rows_survives_added_rows(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    before_rows, after_rows = records(60), [*reversed(records(60)), *records(20, start=500)]
    before = held_out_cases(build(write(tmp_path / "before.jsonl", before_rows), tokenizer), before_rows)
    after = held_out_cases(build(write(tmp_path / "after.jsonl", after_rows), tokenizer), after_rows)
    assert sum(after[name] != before[name] for name in before) <= 5
    assert sum(before.values()) == 18


def test_split_does_not_depend_on_policy_or_instruction(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    changed = [with_policy(row | {"instruction": "Judge."}, "Within 60 days.") for row in records(40)]
    before = build(write(tmp_path / "before.jsonl", records(40)), tokenizer)
    after = build(write(tmp_path / "after.jsonl", changed), tokenizer)
    assert before.lines == after.lines


def test_split_depends_on_split_seed_and_share(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path / "rows.jsonl", records(200))
    small, large = (build(path, tokenizer, val_split=share).lines[1] for share in (0.1, 0.4))
    assert small < large
    assert (len(small), len(large)) == (20, 80)
    assert build(path, tokenizer, val_split=0.1).lines[1] == small
    assert build(path, tokenizer, val_split=0.1, split_seed=1).lines[1] != small
    assert build(path, tokenizer, val_split=0.1, seed=1).lines[1] == small, "only split_seed moves rows"


@pytest.mark.parametrize("name", ["order_id", "user_id", "customer_id"])
def test_entity_fields_keep_an_entity_in_one_split(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    rows = [record({"case_id": f"A-{i}", name: i // 4, "n": i}) for i in range(80)]
    rows += [record({"case_id": f"B-{i}", name: empty}) for i in range(10) for empty in (None, "")]
    built = build(write(tmp_path / "rows.jsonl", rows), tokenizer)
    trained, held_out = ({(line - 1) // 4 for line in lines if line <= 80} for lines in built.lines)
    assert not trained & held_out
    assert 20 <= len(built.held_out) <= 40
    assert len({line for line in built.lines[1] if line > 80}) < 20, "rows without an id share no entity"


OVERLAPS = {
    "row": record({"order_id": "O-1"}),
    "prompt": record({"order_id": "O-1"}, {"decision": "Escalate"}),
    "case": with_policy(record({"order_id": "O-1"}), "Another policy.") | {"instruction": "Other."},
    "case in capitals": record({"order_id": "o-1", "case_id": "a-1"}),
    "instruction with a blank": record({"order_id": "O-1"}, instruction="Decide this case.\n "),
    "entity": record({"order_id": "O-1", "case_id": "Z-9"}),
}


@pytest.mark.parametrize("kind", OVERLAPS)
def test_overlap_with_eval_path_is_failed_dropped_or_allowed(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, kind: str
) -> None:
    held_out = write(tmp_path / "held_out.jsonl", [record({"order_id": "O-1"}), *records(2, start=90)])
    rows = write(tmp_path / "rows.jsonl", [*records(4, start=10), OVERLAPS[kind]])

    failed = build(rows, tokenizer, eval_path=held_out)
    assert [failure.split(":")[0] for failure in failed.report.failures] == ["overlap"]
    finding = failed.finding("overlap with eval_path")
    assert finding and finding.count == 1 and f"{rows}:5" in finding.places[0]

    dropped = build(rows, tokenizer, eval_path=held_out, overlap="drop")
    assert dropped.report.failures == []
    assert (dropped.report.accounts[1].trained, dropped.report.accounts[1].duplicates) == (4, 1)
    assert len(dropped.held_out) == 3

    allowed = build(rows, tokenizer, eval_path=held_out, overlap="allow")
    assert allowed.report.failures == []
    # An exact duplicate of a held-out row is never trained on.
    is_same_row = kind in ("row", "instruction with a blank")
    assert (allowed.report.accounts[1].trained, allowed.report.accounts[1].duplicates) == (5 - is_same_row, is_same_row)


def test_eval_path_may_be_inside_dataset_path(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "data").mkdir()
    held_out = write(tmp_path / "data" / "held_out.jsonl", records(3))
    write(tmp_path / "data" / "train.jsonl", records(5, start=50))
    built = build(tmp_path / "data", tokenizer, eval_path=held_out, overlap="drop")
    assert built.report.failures == []
    assert [(a.held_out, a.trained, a.duplicates) for a in built.report.accounts] == [(3, 0, 0), (0, 0, 3), (0, 5, 0)]


def test_held_out_prompts_are_not_trained_on(sample_rows: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    built = build(sample_rows, tokenizer)
    trained = {tuple(prompt_of(row)) for row in built.train}
    assert not trained & {tuple(prompt_of(row)) for row in built.held_out}


@pytest.mark.parametrize("entity_fields", [(), ("order_id", "user_id", "customer_id")])
def test_training_leakage_keys_are_those_of_trained_rows(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, entity_fields: tuple[str, ...]
) -> None:
    """They are sorted, so equal rows give equal bytes; held-out, overlong and rejected rows add none."""
    rows = [record({"case_id": f"A-{i}", "order_id": i, "customer_id": f"C-{i // 3}"}) for i in range(60)]
    overlong = with_policy(record({"case_id": "long", "order_id": 99}), "Never sold things. " * 2000)
    path = write(tmp_path / "rows.jsonl", [*rows, rows[0], overlong, b"{"])
    built = build(path, tokenizer, entity_fields=entity_fields)
    keys = {row.line: leakage_keys(row.record, entity_fields) for row in load_jsonl(path).rows}
    trained, held_out = ({key for line in lines for key in keys[line]} for lines in built.lines)
    assert built.leakage_keys.dtype == np.uint64
    assert built.leakage_keys.tolist() == sorted(trained)
    assert held_out and not held_out & trained
    assert build(path, tokenizer, entity_fields=entity_fields).leakage_keys.tobytes() == built.leakage_keys.tobytes()


def dialogue(number: int, turns: int) -> list[Record]:
    """A dialogue cut into one row per answer."""
    answer = json.dumps(record()["output"])
    messages = [{"role": "system", "content": "Decide."}]
    rows = []
    for turn in range(turns):
        messages += [{"role": "user", "content": f"Chat {number}, question {turn}?"}]
        messages += [{"role": "assistant", "content": answer}]
        rows.append({"messages": list(messages)})
    return rows


def test_rows_of_one_dialogue_are_in_one_split(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [row for number in range(20) for row in dialogue(number, 5)]
    built = build(write(tmp_path / "rows.jsonl", rows), tokenizer)
    trained, held_out = built.lines
    assert len(held_out) >= 10
    assert {(line - 1) // 5 for line in trained}.isdisjoint((line - 1) // 5 for line in held_out)


def test_rows_that_only_begin_alike_are_not_tied(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A greeting answered in every dialogue is in no row as the answer to learn."""
    greeting = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "How can I help?"}]
    rows = [row for number in range(20) for row in dialogue(number, 1)]
    greeted = [{"messages": [*greeting, *row["messages"][1:]]} for row in rows]
    built = build(write(tmp_path / "rows.jsonl", greeted), tokenizer)
    assert len(built.held_out) == 6


def test_eval_rows_answered_in_a_training_prompt_overlap(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [row for number in range(4) for row in dialogue(number, 3)]
    held_out = write(tmp_path / "eval.jsonl", rows[:1])
    built = build(write(tmp_path / "rows.jsonl", rows[1:]), tokenizer, eval_path=held_out, overlap="drop")
    assert built.lines[0] == set(range(3, 12))  # the two later rows of the first dialogue are dropped


def test_leakage_keys_of_trained_dialogues_hold_earlier_questions(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A later run may hold out a row whose answer stands in a prompt that was trained on."""
    path = write(tmp_path / "rows.jsonl", [dialogue(number, 3)[2] for number in range(9)])
    built = build(path, tokenizer, val_split=0.1)
    earlier = load_jsonl(write(tmp_path / "earlier.jsonl", [dialogue(number, 2)[1] for number in range(9)])).rows
    known = [bool(np.isin(leakage_keys(row.record, ()), built.leakage_keys).any()) for row in earlier]
    assert [line for line, found in enumerate(known, 1) if found] == sorted(built.lines[0])
