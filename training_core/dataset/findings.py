"""The report on all rows, from the facts about each: accounts, decisions, lengths, findings and failures."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from training_core.config import RunConfig
from training_core.dataset.evaluation_findings import evaluation_findings
from training_core.dataset.ingest import Ingested, Source
from training_core.dataset.report import Account, DataReport, DecisionCount, Finding, Lengths
from training_core.dataset.splits import DUPLICATE, HELD_OUT, OVERLONG, TRAINED

MAX_LISTED = 20
RARE = 5
_OVERLAP = {"error": "not allowed", "drop": "dropped", "allow": "used, except exact duplicates"}
_PERCENTILES = (50, 90, 99, 100)
_MAX_BINS = 15
_CASE_AND_POLICY = ["near_duplicate_key", "policy"]
_MAX_PLACES_PER_FAILURE = 5


def report_on(config: RunConfig, ingested: Ingested, facts: pd.DataFrame, packing: str) -> DataReport:
    """The report on rows whose ``facts`` include ``split`` and ``overlap``; its failures are the broken rules."""
    return DataReport(
        accounts=[_account(source, facts) for source in ingested.sources],
        decisions=_count_decisions(facts),
        lengths=_measure(config, facts),
        policies=facts.loc[facts["policy"] != 0, "policy"].nunique(),
        packing=packing,
        findings=[finding for finding in _findings(config, ingested, facts) if finding.count],
        failures=list(_failures(config, ingested, facts)),
        problems=ingested.problems,
        case_fields=[name for name, _ in ingested.case_fields.present.most_common()],
    )


def _account(source: Source, facts: pd.DataFrame) -> Account:
    from_source = (facts["file"] == source.file) & (facts["held_out_file"] == source.held_out)
    splits = facts.loc[from_source, "split"].value_counts()
    counts = {split: int(splits.get(split, 0)) for split in (TRAINED, HELD_OUT, DUPLICATE, OVERLONG)}
    return Account(source.file, source.format, source.lines, rejected=source.rejected, **counts)


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
    edges = _bin_edges(int(tokens.min()), percentiles["99"], percentiles["100"], config.max_seq_length)
    return Lengths(config.max_seq_length, percentiles, edges, np.histogram(tokens, edges)[0].tolist())


# Bin edges of the histogram of lengths, at round numbers, as plots choose their ticks. A few outliers would stretch the
# axis, so from twice the 99th percentile on they share one bin, or two if max_seq_length is between the edges.
#
#     shortest    99th percentile    longest    limit
#     700         980                1,000      2,048    →  700, 725, 750, …, 1000, 1025
#     700         980                5,000      512      →  700, 720, 740, …, 980, 1000, 5001
#     700         980                5,000      2,048    →  700, 720, 740, …, 980, 1000, 2049, 5001
def _bin_edges(shortest: int, percentile_99: int, longest: int, limit: int) -> list[int]:
    top = longest if longest < 2 * percentile_99 else percentile_99
    edges = [int(edge) for edge in MaxNLocator(_MAX_BINS, integer=True).tick_values(shortest, top + 1)]
    if longest < edges[-1]:
        return edges
    return [*edges, *([limit + 1] if edges[-1] <= limit < longest else []), longest + 1]


def _findings(config: RunConfig, ingested: Ingested, facts: pd.DataFrame) -> Iterator[Finding]:
    yield from evaluation_findings(config, ingested.case_fields, facts)
    yield from _findings_on_rows(config, facts)
    yield from _findings_on_texts(ingested)


def _findings_on_rows(config: RunConfig, facts: pd.DataFrame) -> Iterator[Finding]:
    unique = facts[facts["split"] != DUPLICATE]
    duplicates = facts[facts.duplicated("row", keep=False)]
    yield _groups("exact duplicates", "only the first is used", duplicates, ["row"])
    yield from _findings_on_cases(unique[unique.duplicated(_CASE_AND_POLICY, keep=False)])
    meaning = f"same row, case or entity; {_OVERLAP[config.overlap]}"
    yield _rows("overlap with eval_path", meaning, facts[facts["overlap"].notna()], "overlap")
    yield _rows("overlong rows", "above max_seq_length", facts[facts["split"] == OVERLONG], "tokens")
    yield _rows("trimmed policies", "sections kept", facts[facts["kept"] != ""], "kept")
    counts = unique["decision"].value_counts()
    rare = [f"{name}: {count}" for name, count in counts.items() if count < RARE]
    meaning = f"fewer than {RARE} rows, too few to learn or to measure"
    yield Finding("rare decisions", len(rare), meaning, rare[:MAX_LISTED])


def _findings_on_cases(related: pd.DataFrame) -> Iterator[Finding]:
    """Findings on rows whose case and policy are equal, or equal but for near-duplicates, to those of another row."""
    variety = related.groupby(_CASE_AND_POLICY)[["decision", "case"]].transform("nunique")
    near_duplicates, conflicting = related[variety["case"] > 1], related[variety["decision"] > 1]
    meaning = "differ only in capitals, spacing and punctuation; all used"
    yield _groups("near-duplicate cases", meaning, near_duplicates, _CASE_AND_POLICY)
    meaning = "one case and policy, several decisions; all used"
    yield _groups("conflicting answers", meaning, conflicting, _CASE_AND_POLICY)


def _findings_on_texts(ingested: Ingested) -> Iterator[Finding]:
    files = [f"{file}: {reason}" for file, reason in ingested.not_read.items()]
    yield Finding("files that are not read", len(files), "each with its reason", files[:MAX_LISTED])
    keys = [f"{key}: first in {place}" for key, place in ingested.unknown_keys.items()]
    yield Finding("unknown keys", len(keys), "ignored in training", keys[:MAX_LISTED])
    meaning = f"of {ingested.audited} rows for which label_audit has a rule"
    contradictions = ingested.contradictions[:MAX_LISTED]
    yield Finding("labels that contradict the rules", ingested.contradicted, meaning, contradictions)
    meaning = "answer_audit has found problems in what the rows expect"
    yield Finding(
        "expected answers with problems", ingested.bad_answers, meaning, ingested.answer_problems[:MAX_LISTED]
    )


def _groups(subject: str, meaning: str, rows: pd.DataFrame, key: list[str]) -> Finding:
    """One place per group of rows with equal ``key``; the count leaves out the first row of each group."""
    found = rows.groupby(key, sort=False)
    listed = islice(found, MAX_LISTED)
    places = [" = ".join(_place(row) for _, row in group.head(4).iterrows()) for _, group in listed]
    return Finding(subject, len(rows) - found.ngroups, meaning, places)


def _rows(subject: str, meaning: str, rows: pd.DataFrame, detail: str) -> Finding:
    """One place per row, with the value of the column ``detail``."""
    places = [f"{_place(row)}: {row[detail]}" for _, row in rows.head(MAX_LISTED).iterrows()]
    return Finding(subject, len(rows), meaning, places)


def _place(row: pd.Series) -> str:
    return f"{row['file']}:{row['line']}"


def _failures(config: RunConfig, ingested: Ingested, facts: pd.DataFrame) -> Iterator[str]:
    for source in ingested.sources:
        yield from _failures_of_file(config, source)
    splits = facts["split"].value_counts().to_dict()
    for name, path, is_held_out in _paths(config):
        if not any(source.held_out == is_held_out and source.rows for source in ingested.sources):
            yield f"{name}: expected usable rows in {path}, found none; fix its lines or give other files"
    overlap = facts[facts["overlap"].notna()]
    if len(overlap) and config.overlap == "error":
        found = f"found {len(overlap)} ({_first_places(overlap)}); set overlap to drop or allow"
        yield f"overlap: expected no training row with a case or entity of eval_path, {found}"
    overlong = facts[facts["split"] == OVERLONG]
    if len(overlong) and config.overlong == "error":
        found = f"found {len(overlong)} longer rows ({_first_places(overlong)})"
        fix = "raise max_seq_length, or set overlong to drop or trim_policy"
        yield f"overlong: expected at most {config.max_seq_length} tokens per row, {found}; {fix}"
    if TRAINED not in splits:
        yield "expected rows to train on, found none; see which lines were not used, and check max_seq_length"
    if HELD_OUT not in splits:
        fix = "raise val_split, set eval_path, add rows or name fewer entity_fields"
        yield f"expected rows to hold out for evaluation, found none; {fix}"


def _first_places(rows: pd.DataFrame) -> str:
    places = [_place(row) for _, row in rows.head(_MAX_PLACES_PER_FAILURE).iterrows()]
    return ", ".join([*places, "…"] if len(rows) > len(places) else places)


def _failures_of_file(config: RunConfig, source: Source) -> Iterator[str]:
    if source.error:
        yield f"{source.file}: cannot read the whole file: {source.error}"
    if source.rejected > config.max_refused_share * source.lines:
        allowed = f"expected at most {config.max_refused_share:.0%} rejected lines (max_refused_share)"
        yield f"{source.file}: {allowed}, got {source.rejected} of {source.lines}; fix them or raise max_refused_share"


def _paths(config: RunConfig) -> list[tuple[str, str, bool]]:
    held_out = [("eval_path", config.eval_path, True)] if config.eval_path else []
    return [*held_out, ("dataset_path", config.dataset_path, False)]
