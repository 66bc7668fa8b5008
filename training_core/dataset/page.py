"""The report on rows as one HTML page that needs nothing besides itself: no script, no network, no font."""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from itertools import pairwise

from jinja2 import Environment, StrictUndefined, Template

from training_core.dataset.report import DataReport, DecisionCount, Lengths
from training_core.dataset.tables import fitting, kinds_of, share, sharing, total, verdict, with_short_names

TEMPLATE = "page.html.jinja"


def render_page(report: DataReport) -> str:
    """The page. Equal reports give equal pages, and what stands in a row stays text whatever it looks like."""
    short = with_short_names(report)
    return _template().render(
        report=short,
        kinds=kinds_of(short.problems),
        files=[account.file for account in report.accounts],
        every=total(report.accounts),
        verdict=verdict(report),
        sharing=sharing(report),
        fitting=fitting(report) if report.lengths.counts else "",
        bins=[*zip(pairwise(report.lengths.edges), report.lengths.counts, strict=True)],
        limit_at=_limit_at(report.lengths),
        widest=_largest_share(report.decisions),
    )


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": "{:,}".format, "span": _span}
    environment.tests |= {"wider": lambda edges, width: edges[1] - edges[0] > width}
    environment.globals |= {"share": share}
    return environment.from_string(files("training_core.dataset").joinpath(TEMPLATE).read_text(encoding="utf-8"))


def _span(edges: tuple[int, int]) -> str:
    return f"{edges[0]:,}–{edges[1] - 1:,}"


def _limit_at(lengths: Lengths) -> float | None:
    """Where ``max_seq_length`` stands among bins of equal width, in per cent; ``None`` where it is not among them."""
    for place, (low, high) in enumerate(pairwise(lengths.edges)):
        if low <= lengths.limit < high:
            return 100 * (place + (lengths.limit + 1 - low) / (high - low)) / len(lengths.counts)
    return None


def _largest_share(decisions: Sequence[DecisionCount]) -> float:
    sides = [[d.trained for d in decisions], [d.held_out for d in decisions]]
    return max((max(side) / sum(side) for side in sides if any(side)), default=1.0)
