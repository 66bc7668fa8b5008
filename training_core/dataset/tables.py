"""The report on rows as tables and sentences."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import astuple, replace
from itertools import pairwise
from typing import NamedTuple

from training_core.dataset.report import Account, DataReport, DecisionCount, Lengths
from training_core.escaping import in_markdown
from training_core.grid import Grid
from training_core.rows.strict_json import Problem

MAX_SHOWN = 20
MAX_PLACES_SHOWN = 5

_BAR_WIDTH = 20
_EIGHTHS = "▏▎▍▌▋▊▉█"


def data_grids(report: DataReport) -> list[Grid]:
    """The report without its verdict: accounts, decisions, lengths, policies, findings and rejected lines."""
    report = with_short_names(report)
    grids = [
        account_grid(report.accounts),
        _decision_grid(report.decisions),
        _length_grid(report),
        Grid("Shared policies", (), (), sharing(report)),
        *_finding_grids(report),
        _problem_grid(report),
    ]
    return [grid for grid in grids if grid.rows or grid.note]


def as_markdown(report: DataReport) -> str:
    """The whole report, verdict first."""
    failures = [f"- {in_markdown(failure)}" for failure in with_short_names(report).failures]
    tables = [grid.markdown() for grid in data_grids(report)]
    return "\n\n".join([f"# {in_markdown(verdict(report))}", *(["\n".join(failures)] if failures else []), *tables])


def verdict(report: DataReport) -> str:
    """Whether the rows are fit to train on, in one line."""
    if report.failures:
        broken = "1 rule is broken" if len(report.failures) == 1 else f"{len(report.failures)} rules are broken"
        return f"NOT fit to train on: {broken}"
    totals = total(report.accounts)
    unused = totals.lines - totals.trained - totals.held_out
    return (
        f"Fit to train on: {totals.trained:,} rows for training, {totals.held_out:,} held out, "
        f"{unused:,} of {totals.lines:,} unused"
    )


def total(accounts: Sequence[Account], name: str = "all") -> Account:
    """The accounts of several files as one."""
    counts = [astuple(account)[2:] for account in accounts]
    return Account(name, "", *map(sum, zip(*counts, strict=True)))


def with_short_names(report: DataReport) -> DataReport:
    """The same report with every path replaced by its shortest suffix that no other file has."""
    names = short_names(account.file for account in report.accounts)
    longest_first = sorted(names, key=len, reverse=True)

    def shorten(text: str) -> str:
        return re.sub("|".join(map(re.escape, longest_first)), lambda found: names[found[0]], text) if names else text

    return replace(
        report,
        accounts=[replace(account, file=names[account.file]) for account in report.accounts],
        findings=[replace(finding, places=[shorten(place) for place in finding.places]) for finding in report.findings],
        failures=[shorten(failure) for failure in report.failures],
        problems=[replace(problem, file=names[problem.file]) for problem in report.problems],
    )


def short_names(files: Iterable[str]) -> dict[str, str]:
    """The shortest suffix of each path that no other path has: ``/a/x.jsonl``, ``/b/x.jsonl`` → ``a/x.jsonl``, …"""
    parts = {file: file.split("/") for file in files}
    suffixes = {file: ["/".join(names[-n:]) for n in range(1, len(names) + 1)] for file, names in parts.items()}
    counts = Counter(suffix for several in suffixes.values() for suffix in several)
    return {
        file: next((suffix for suffix in several if counts[suffix] == 1), file) for file, several in suffixes.items()
    }


def account_grid(accounts: Sequence[Account]) -> Grid:
    """How the lines of each file are used."""
    names = short_names(account.file for account in accounts)
    shown = [replace(account, file=names[account.file]) for account in accounts[:MAX_SHOWN]]
    if rest := accounts[MAX_SHOWN:]:
        shown.append(total(rest, f"… {len(rest):,} more"))
    if len(accounts) > 1:
        shown.append(total(accounts))
    head = ("file", "lines", "trained", "held out", "duplicates", "rejected", "overlong")
    rows = [
        (f"{file} ({row_format})" if row_format else file, *(f"{count:,}" for count in counts))
        for file, row_format, *counts in map(astuple, shown)
    ]
    return Grid("Every line accounted for", head, rows)


def _decision_grid(decisions: Sequence[DecisionCount]) -> Grid:
    trained, held_out = sum(d.trained for d in decisions), sum(d.held_out for d in decisions)
    shown = [*decisions[:MAX_SHOWN]]
    if rest := decisions[MAX_SHOWN:]:
        sums = sum(d.trained for d in rest), sum(d.held_out for d in rest)
        shown.append(DecisionCount(f"… {len(rest):,} more", *sums))
    rows = [
        (d.decision, f"{d.trained:,}", share(d.trained, trained), f"{d.held_out:,}", share(d.held_out, held_out))
        for d in shown
    ]
    head = ("decision", "trained", "share", "held out", "share")
    return Grid(f"Decisions of {trained:,} trained and {held_out:,} held-out rows", head, rows)


def _length_grid(report: DataReport) -> Grid:
    lengths = report.lengths
    rows = sum(lengths.counts)
    most = max(lengths.counts, default=0)
    table = [
        (f"{low:,}–{high - 1:,}", f"{count:,}", share(count, rows), _bar(count, most) + _limit_mark(lengths, low, high))
        for (low, high), count in zip(pairwise(lengths.edges), lengths.counts, strict=True)
    ]
    return Grid(f"Lengths of {rows:,} rows", ("tokens", "rows", "share", ""), table, fitting(report) if rows else "")


def _bar(count: int, most: int) -> str:
    eighths = max(1, round(8 * _BAR_WIDTH * count / most)) if count else 0
    whole, rest = divmod(eighths, 8)
    return _EIGHTHS[-1] * whole + (_EIGHTHS[rest - 1] if rest else "")


def _limit_mark(lengths: Lengths, low: int, high: int) -> str:
    return f" ◀ max_seq_length {lengths.limit:,}" if low <= lengths.limit < high else ""


def fitting(report: DataReport) -> str:
    """How many rows fit in ``max_seq_length``, and percentiles of their lengths, as two sentences."""
    lengths = report.lengths
    rows, overlong = sum(lengths.counts), total(report.accounts).overlong
    fit = f"All {rows:,} rows fit" if not overlong else f"{rows - overlong:,} of {rows:,} rows fit"
    median, p90, p99, longest = (f"{tokens:,}" for tokens in lengths.percentiles.values())
    return (
        f"{fit} in {lengths.limit:,} tokens (max_seq_length). The median row has {median} tokens; "
        f"90% have at most {p90}, 99% at most {p99}; the longest has {longest}."
    )


def sharing(report: DataReport) -> str:
    """The number of policies and what packing gains from sharing them, as a sentence."""
    policies = {0: "No policies", 1: "1 policy"}.get(report.policies, f"{report.policies:,} policies")
    return f"{policies}. Packing: {report.packing}." if report.packing else f"{policies}; no packing."


def _finding_grids(report: DataReport) -> list[Grid]:
    totals = total(report.accounts)
    findings = [(finding.subject, f"{finding.count:,}", finding.meaning) for finding in report.findings]
    places = [
        ("" if number else finding.subject, place)
        for finding in report.findings
        for number, place in enumerate(finding.places[:MAX_PLACES_SHOWN])
    ]
    truncated = any(len(finding.places) > MAX_PLACES_SHOWN for finding in report.findings)
    return [
        Grid(f"Findings on {totals.lines - totals.rejected:,} rows", ("finding", "count", "meaning"), findings),
        Grid("Places", ("finding", "place"), places, "The first places; report.html has more." if truncated else ""),
    ]


class ProblemKind(NamedTuple):
    """Lines of one file rejected for the same reason: the first problem and how many lines."""

    first: Problem
    lines: int


def kinds_of(problems: Iterable[Problem]) -> list[ProblemKind]:
    """The problems grouped by file, field and fix, in the order of their first lines."""
    kinds: dict[tuple[str, str, str], ProblemKind] = {}
    for problem in problems:
        key = (problem.file, problem.field, problem.fix)
        kind = kinds.get(key, ProblemKind(problem, 0))
        kinds[key] = kind._replace(lines=kind.lines + 1)
    return list(kinds.values())


def _problem_grid(report: DataReport) -> Grid:
    totals = total(report.accounts)
    kinds = kinds_of(report.problems)
    rows = [
        (f"{first.file}:{first.line}", f"{lines:,}", first.field, first.what, first.fix)
        for first, lines in kinds[:MAX_SHOWN]
    ]
    more = totals.rejected - sum(kind.lines for kind in kinds[:MAX_SHOWN])
    note = f"{more:,} more: see problems.jsonl." if more else ""
    title = f"Rejected lines: {totals.rejected:,} of {totals.lines:,}"
    return Grid(title, ("first place", "lines", "field", "problem", "fix"), rows, note)


def share(part: int, whole: int) -> str:
    """A share in per cent; a small part is ``<1%``, never ``0%``, and an incomplete one ``>99%``, never ``100%``."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    if 0 < percent < 1:
        return "<1%"
    return ">99%" if 99 < percent < 100 else f"{percent:.0f}%"
