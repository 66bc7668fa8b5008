"""Tables of texts for a terminal of any width and for Markdown."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_NUMBER = re.compile(r"[<>]?[\d.,%–/-]*(?: [A-Za-z]{1,3})?")
_NAME_WIDTH = 24


@dataclass(frozen=True)
class Grid:
    """A table of texts with a sentence below it. Columns of numbers stand right, all others left."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def terminal(self) -> Group:
        """The table for rich: texts wrap where the terminal is narrow, numbers never do, nothing is cut."""
        table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        texts = [place for place in range(len(self.head)) if not self.is_number(place)]
        for place, name in enumerate(self.head):
            if self.is_number(place):
                table.add_column(Text("\n".join(name.split())), justify="right", no_wrap=True)
            else:
                longest = max((len(row[place]) for row in self.rows), default=0)
                # Where other texts can give way, a name or a place in a file stays in one piece.
                whole = min(longest, _NAME_WIDTH) if place == 0 and len(texts) > 1 else None
                table.add_column(Text(name), overflow="fold", min_width=whole)
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        note = [Padding(Text(self.note), (0, 0, 1, 1), expand=False)] if self.note else []
        return Group(Text(self.title, style="bold"), *([table] if self.rows else []), *note)

    def markdown(self) -> str:
        line = ["---:" if self.is_number(place) else "---" for place in range(len(self.head))]
        rows = [self.head, line, *self.rows] if self.rows else []
        table = [f"| {' | '.join(map(_in_one_cell, row))} |" for row in rows]
        return "\n".join([f"**{self.title}**", "", *table, *(["", self.note] if self.note else [])])

    def is_number(self, place: int) -> bool:
        """Whether a column holds nothing but numbers; the first one holds names."""
        return place > 0 and all(_NUMBER.fullmatch(row[place]) for row in self.rows)


def _in_one_cell(text: str) -> str:
    return escape(" ".join(text.split()), quote=False).replace("|", "\\|")
