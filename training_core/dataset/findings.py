"""From the facts about all rows to the report on them."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from training_core.config import RunConfig
from training_core.dataset.evaluation_findings import evaluation_findings, field_failures
from training_core.dataset.ingest import Ingested, Source
from training_core.dataset.report import Account, DataReport, DecisionCount, Finding, Lengths
from training_core.dataset.splits import DUPLICATE, HELD_OUT, OVERLONG, TRAINED

MOST_LISTED = 20
RARE = 5
_OVERLAP = {"error": "not allowed", "drop": "dropped", "allow": "used, but equal rows are duplicates"}
_PERCENTILES = (50, 90, 99, 100)
_MOST_BINS = 15
_SAME = ["near_duplicate_key", "policy"]
_PLACES_IN_A_FAILURE = 5


def report_on(config: RunConfig, ingested: Ingested, facts: pd.DataFrame, packing: str) -> DataReport:
    """The report on rows whose ``facts`` have got their ``split`` and ``overlap``; broken rules are its failures."""
    findings = [*_findings_on_rows(config, facts), *_findings_on_texts(ingested)]
    findings = [*evaluation_findings(config, ingested.case_fields, facts), *findings]
    return DataReport(
        accounts=[_account(source, facts) for source in ingested.sources],
        decisions=_count_decisions(facts),
        lengths=_measure(config, facts),
        policies=facts.loc[facts["policy"] != 0, "policy"].nunique(),
        packing=packing,
        findings=[finding for finding in findings if finding.count],
        failures=list(_failures(config, ingested, facts)),
        problems=ingested.problems,
    )


def _account(source: Source, facts: pd.DataFrame) -> Account:
    from_there = (facts["file"] == source.file) & (facts["held_out_file"] == source.held_out)
    splits = facts.loc[from_there, "split"].value_counts()
    counts = {split: int(splits.get(split, 0)) for split in (TRAINED, HELD_OUT, DUPLICATE, OVERLONG)}
    lines = source.rows + source.rejected
    return Account(source.file, source.shape, lines, rejected=source.rejected, **counts)


def _count_decisions(facts: pd.DataFrame) -> list[DecisionCount]:
    used = facts[facts["split"].isin([TRAINED, HELD_OUT])]
    table = pd.crosstab(used["decision"], used["split"]).reindex(columns=[TRAINED, HELD_OUT], fill_value=0)
    table = table.sort_values([TRAINED, HELD_OUT], ascending=False)
    return [DecisionCount(str(name), int(row[TRAINED]), int(row[HELD_OUT])) for name, row in table.iterrows()]


def _measure(config: RunConfig, facts: pd.DataFrame) -> Lengths:
    tokens = facts.loc[facts["split"] != DUPLICATE, "tokens"].to_numpy()
    if not len(tokens):
        return Lengths(config.max_seq_length, {}, [], [])
    percentiles = {str(share): int(np.percentile(tokens, share, method="higher")) for share in _PERCENTILES}
    edges = _round_edges(int(tokens.min()), percentiles["99"], percentiles["100"], config.max_seq_length)
    return Lengths(config.max_seq_length, percentiles, edges, np.histogram(tokens, edges)[0].tolist())


def _round_edges(least: int, nearly_all: int, most: int, limit: int) -> list[int]:
    """Round numbers around all lengths; a few rows far above the others share a last bin on each side of the limit."""
    top = most if most < 2 * nearly_all else nearly_all
    edges = [int(edge) for edge in MaxNLocator(_MOST_BINS, integer=True).tick_values(least, top + 1)]
    if most < edges[-1]:
        return edges
    return [*edges, *([limit + 1] if edges[-1] <= limit < most else []), most + 1]


def _findings_on_rows(config: RunConfig, facts: pd.DataFrame) -> Iterator[Finding]:
    unique = facts[facts["split"] != DUPLICATE]
    alike = unique[unique.duplicated(_SAME, keep=False)]
    kinds = alike.groupby(_SAME)[["decision", "case"]].transform("nunique")
    opposed, almost = alike[kinds["decision"] > 1], alike[kinds["case"] > 1]
    again = facts[facts.duplicated("row", keep=False)]
    yield _groups("exact duplicates", "only the first is used", again, ["row"])
    yield _groups("almost equal cases", "the same but for capitals, spacing and punctuation; all used", almost, _SAME)
    yield _groups("conflicting answers", "one case under one policy, several decisions; all used", opposed, _SAME)
    shared = facts[facts["overlap"].notna()]
    meaning = f"in row, case or entity; {_OVERLAP[config.overlap]}"
    yield _rows("rows that share with eval_path", meaning, shared, "overlap")
    yield _rows("overlong rows", "above max_seq_length", facts[facts["split"] == OVERLONG], "tokens")
    yield _rows("shortened policies", "whole sections left out", facts[facts["kept"] != ""], "kept")
    counts = unique["decision"].value_counts()
    rare = [f"{name}: {count}" for name, count in counts.items() if count < RARE]
    yield Finding("rare decisions", len(rare), f"fewer than {RARE} rows: hardly learnt or measured", rare[:MOST_LISTED])


def _findings_on_texts(ingested: Ingested) -> Iterator[Finding]:
    keys = [f"{key}: first in {place}" for key, place in ingested.unknown_keys.items()]
    yield Finding("keys that nobody reads", len(keys), "neither learnt nor rejected", keys[:MOST_LISTED])
    meaning = f"of {ingested.audited} rows whose policy label_audit has rules for"
    yield Finding("labels against the rules", ingested.contradicted, meaning, ingested.contradictions[:MOST_LISTED])


def _groups(subject: str, meaning: str, rows: pd.DataFrame, key: list[str]) -> Finding:
    """Rows of one ``key`` in a line; the count is of all but the first of each."""
    found = rows.groupby(key, sort=False)
    listed = islice(found, MOST_LISTED)
    places = [" = ".join(_place(row) for _, row in group.head(4).iterrows()) for _, group in listed]
    return Finding(subject, len(rows) - found.ngroups, meaning, places)


def _rows(subject: str, meaning: str, rows: pd.DataFrame, detail: str) -> Finding:
    places = [f"{_place(row)}: {row[detail]}" for _, row in rows.head(MOST_LISTED).iterrows()]
    return Finding(subject, len(rows), meaning, places)


def _place(row: pd.Series) -> str:
    return f"{row['file']}:{row['line']}"


def _failures(config: RunConfig, ingested: Ingested, facts: pd.DataFrame) -> Iterator[str]:
    for source in ingested.sources:
        yield from _failures_of_file(config, source)
    yield from field_failures(config, ingested.case_fields)
    splits = facts["split"].value_counts().to_dict()
    for name, path, is_held_out in _paths(config):
        if not any(source.held_out == is_held_out and source.rows for source in ingested.sources):
            yield f"{name}: there are no rows in {path}; mend its lines or give other files"
    shared = facts[facts["overlap"].notna()]
    if len(shared) and config.overlap == "error":
        what = f"{len(shared)} training rows share their case or an entity with eval_path ({_first_places(shared)})"
        yield f"overlap: {what}; set overlap to drop or allow"
    overlong = facts[facts["split"] == OVERLONG]
    if len(overlong) and config.overlong == "error":
        what = f"{len(overlong)} rows are longer than {config.max_seq_length} tokens ({_first_places(overlong)})"
        yield f"overlong: {what}; raise max_seq_length, or set overlong to drop or trim_policy"
    if TRAINED not in splits:
        yield "no row is left to train on; see where the lines went, and max_seq_length"
    if HELD_OUT not in splits:
        yield "no row is held out to evaluate on; raise val_split, give eval_path, add rows or name fewer entity_fields"


def _first_places(rows: pd.DataFrame) -> str:
    places = [_place(row) for _, row in rows.head(_PLACES_IN_A_FAILURE).iterrows()]
    return ", ".join([*places, "…"] if len(rows) > len(places) else places)


def _failures_of_file(config: RunConfig, source: Source) -> Iterator[str]:
    if source.broken_off:
        yield f"{source.file} cannot be read to its end: {source.broken_off}"
    lines = source.rows + source.rejected
    if source.rejected > config.max_refused_share * lines:
        fix = f"mend them, or raise max_refused_share ({config.max_refused_share:.0%})"
        yield f"{source.file}: {source.rejected} of {lines} lines cannot be used; {fix}"


def _paths(config: RunConfig) -> list[tuple[str, str, bool]]:
    held_out = [("eval_path", config.eval_path, True)] if config.eval_path else []
    return [*held_out, ("dataset_path", config.dataset_path, False)]
