"""The report on rows as one self-contained HTML page: no script, no network access, no external font."""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from itertools import pairwise

from jinja2 import Template

from training_core.dataset.report import DataReport, DecisionCount, Lengths
from training_core.dataset.tables import fitting, kinds_of, share, sharing, total, verdict, with_short_names
from training_core.pages import page_environment

TEMPLATE = "page.html.jinja"


def render_page(report: DataReport) -> str:
    """The page. Equal reports give equal pages, and texts from rows are escaped."""
    short = with_short_names(report)
    return _template().render(
        report=short,
        kinds=kinds_of(short.problems),
        files=[account.file for account in report.accounts],
        totals=total(report.accounts),
        verdict=verdict(report),
        sharing=sharing(report),
        fitting=fitting(report) if report.lengths.counts else "",
        bins=[*zip(pairwise(report.lengths.edges), report.lengths.counts, strict=True)],
        limit_at=_limit_at(report.lengths),
        widest=_largest_share(report.decisions),
    )


@cache
def _template() -> Template:
    environment = page_environment()
    environment.filters |= {"number": "{:,}".format, "span": _span}
    environment.tests |= {"wider": lambda edges, width: edges[1] - edges[0] > width}
    environment.globals |= {"share": share}
    return environment.from_string(files("training_core.dataset").joinpath(TEMPLATE).read_text(encoding="utf-8"))


def _span(edges: tuple[int, int]) -> str:
    return f"{edges[0]:,}–{edges[1] - 1:,}"


def _limit_at(lengths: Lengths) -> float | None:
    """The position of ``max_seq_length`` on the axis of the histogram, in per cent; ``None`` if it is off the axis."""
    for number, (low, high) in enumerate(pairwise(lengths.edges)):
        if low <= lengths.limit < high:
            return 100 * (number + (lengths.limit + 1 - low) / (high - low)) / len(lengths.counts)
    return None


def _largest_share(decisions: Sequence[DecisionCount]) -> float:
    splits = [[d.trained for d in decisions], [d.held_out for d in decisions]]
    return max((max(counts) / sum(counts) for counts in splits if any(counts)), default=1.0)
