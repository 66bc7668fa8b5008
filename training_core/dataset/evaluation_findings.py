"""What the rows say beforehand about their evaluation: what held-out rows can show, and what makes it misleading."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from training_core.config import RunConfig
from training_core.dataset.power import USUAL_DIFFERENCE, detectable_gain
from training_core.dataset.report import Finding
from training_core.dataset.spellings import decision_text
from training_core.dataset.splits import DUPLICATE, HELD_OUT, TRAINED
from training_core.rows.strict_json import Record, with_paths

MOST_LISTED = 20
LEAK_MARGIN = 0.15  # how much more often than group_by a field must predict the decision to be reported

_MOST_COUNTED = 20_000  # rows whose values are counted
_FEWEST_COUNTED = 50
_POLICY = "policy_document"
_ABSENT = "\0absent"


def same_decision(decision: str) -> str:
    """The form under which decisions are compared where capitals and white space at the edges do not count."""
    return decision.strip().casefold()


@dataclass
class CaseFields:
    """Which fields the rows' cases have, and how well each predicts the decision.

    ``rows`` have a case; ``present`` counts in how many of them a field has a value. Of the first rows ``decisions``
    are counted, and ``values``: by kind of clue, each value with each decision. A clue is a field's value, its first
    letter, or the letters before its first digit.
    """

    rows: int = 0
    present: Counter[str] = field(default_factory=Counter)
    decisions: Counter[str] = field(default_factory=Counter)
    values: dict[tuple[str, str], Counter[tuple[str, str]]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, record: Record) -> None:
        """Count one row; a row without a case has no fields."""
        case = record.get("input")
        if case is None:
            return
        self.rows += 1
        given = {name: value for name, value in with_paths(case) if value not in (None, "") and name != _POLICY}
        self.present.update(given.keys())
        if self.rows <= _MOST_COUNTED:
            decision = record["output"]["decision"]
            self.decisions[decision] += 1
            for name, value in given.items():
                for clue, text in _clues(value):
                    self.values[name, clue][text, decision] += 1

    def of_all_rows(self, name: str, clue: str) -> Counter[tuple[str, str]]:
        """The counts of a clue, rows without the field counted under a value of their own."""
        counts = Counter(self.values.get((name, clue), {}))
        with_it: Counter[str] = Counter()
        for (_, decision), count in counts.items():
            with_it[decision] += count
        return counts + Counter({(_ABSENT, decision): n - with_it[decision] for decision, n in self.decisions.items()})

    def missing(self, names: tuple[str, ...]) -> list[str]:
        """Those of these fields that no row has."""
        return [name for name in names if not self.present[name]]


def _clues(value: Any) -> Iterator[tuple[str, str]]:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    yield "value", text
    if isinstance(value, str):
        yield "first letter", text[:1]
        yield "letters before the first digit", text[: next((i for i, sign in enumerate(text) if sign.isdigit()), 0)]


def evaluation_findings(config: RunConfig, fields: CaseFields, facts: pd.DataFrame) -> Iterator[Finding]:
    """All findings of this module on rows whose ``facts`` have got their ``split``."""
    yield _answered_rows(config, facts)
    yield _missing_fields(config, fields)
    yield _spellings(facts)
    yield _never_held_out(facts)
    yield _long_answers(config, facts)
    yield _revealing_fields(config, fields)


def _answered_rows(config: RunConfig, facts: pd.DataFrame) -> Finding:
    rows = min(int((facts["split"] == HELD_OUT).sum()), config.max_eval_rows)
    gain = detectable_gain(rows)
    if gain is None:
        meaning = "too few to show any gain"
    else:
        meaning = (
            f"show a gain in accuracy of {100 * gain:.1f} points in 80% of comparisons, between models that disagree "
            f"on {USUAL_DIFFERENCE:.0%} of them"
        )
    if rows < config.min_eval_rows:
        meaning += f"; no adapter becomes champion on fewer than {config.min_eval_rows} (min_eval_rows)"
    return Finding("rows to be answered", rows, meaning, [])


def _missing_fields(config: RunConfig, fields: CaseFields) -> Finding:
    """Those that ``require_known_names`` lets pass are said here at least: default names, and rows without a case."""
    given = {"entity_fields": config.entity_fields, "slice_fields": config.slice_fields, "group_by": (config.group_by,)}
    places = [f"{setting}: {name}" for setting, names in given.items() for name in fields.missing(names)]
    meaning = "a setting names them, so it has no effect; correct their names or leave them out"
    return Finding("fields that no row has", len(places), meaning, places[:MOST_LISTED])


def _spellings(facts: pd.DataFrame) -> Finding:
    counts = facts["decision"].value_counts().to_dict()
    alike: dict[str, list[str]] = defaultdict(list)
    for decision in counts:
        alike[decision_text(decision)].append(decision)
    several = [names for names in alike.values() if len(names) > 1]
    places = [" = ".join(f"{name!r} ({counts[name]:,} rows)" for name in names) for names in several]
    meaning = "they differ in capitals, spaces or punctuation; an answer in another spelling counts as wrong"
    return Finding("decisions in several spellings", len(several), meaning, places[:MOST_LISTED])


def _never_held_out(facts: pd.DataFrame) -> Finding:
    trained, held_out = (facts.loc[facts["split"] == split, "decision"].value_counts() for split in (TRAINED, HELD_OUT))
    never = [f"{name}: {count:,} trained rows" for name, count in trained.items() if name not in held_out.index]
    meaning = "no score says how well they are decided"
    return Finding("decisions without held-out rows", len(never), meaning, never[:MOST_LISTED])


def _long_answers(config: RunConfig, facts: pd.DataFrame) -> Finding:
    rows = facts[(facts["split"] != DUPLICATE) & (facts["answer_tokens"] > config.eval_max_new_tokens)]
    held_out = int((rows["split"] == HELD_OUT).sum())
    meaning = (
        f"more than {config.eval_max_new_tokens} tokens (eval_max_new_tokens), {held_out:,} of them held out: a model "
        "that gives the expected answer is cut off and counts as wrong"
    )
    places = [f"{row['file']}:{row['line']}: {row['answer_tokens']}" for _, row in rows.head(MOST_LISTED).iterrows()]
    return Finding("answers longer than evaluated", len(rows), meaning, places)


def _revealing_fields(config: RunConfig, fields: CaseFields) -> Finding:
    """Fields, or beginnings of ids, that alone predict the decision far better than ``group_by`` does."""
    group = accuracy_alone(fields.of_all_rows(config.group_by, "value"))
    best: dict[str, tuple[float, str]] = {}
    for name, clue in fields.values if fields.decisions.total() >= _FEWEST_COUNTED else ():
        is_id = name in config.entity_fields and clue == "value"  # rows of one entity are on one side
        if name != config.group_by and not is_id:
            alone = accuracy_alone(fields.of_all_rows(name, clue))
            best[name] = max(best.get(name, (0.0, "")), (alone, clue))
    found = sorted(((share, name, clue) for name, (share, clue) in best.items()), reverse=True)
    places = [f"{name} ({clue}): {share:.0%}" for share, name, clue in found if share >= group + LEAK_MARGIN]
    meaning = f"right that often without the policy, {config.group_by} {group:.0%}; is the label in them?"
    return Finding("fields that reveal the decision", len(places), meaning, places[:MOST_LISTED])


def accuracy_alone(counts: Counter[tuple[str, str]]) -> float:
    """How often the commonest decision of a value is right, each row left out in turn (a value seen once is never).

    Only rows of a value's commonest decision can be right, and are when it stays ahead without the row itself.
    """
    by_value: dict[str, list[int]] = defaultdict(list)
    for (value, _), count in counts.items():
        by_value[value].append(count)
    right = 0
    for sizes in by_value.values():
        most, second, *_ = [*sorted(sizes, reverse=True), 0]
        right += most if most - 1 > second else 0
    return right / counts.total() if counts else 0.0
