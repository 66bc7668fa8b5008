"""Tables of texts for a terminal of any width and for Markdown."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from training_core.escaping import in_markdown, shown

_NUMBER = re.compile(r"[<>]?[\d.,%–/-]*(?: [A-Za-z]{1,3})?")
_NAME_WIDTH = 24


@dataclass(frozen=True)
class Grid:
    """A table of texts with a note below it. Columns of numbers are aligned right, all others left."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def terminal(self) -> Group:
        """The table for rich: in a narrow terminal texts wrap and numbers do not; no text is truncated."""
        table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        texts = [column for column in range(len(self.head)) if not self.is_number(column)]
        for column, name in enumerate(self.head):
            if self.is_number(column):
                table.add_column(Text("\n".join(name.split())), justify="right", no_wrap=True)
            else:
                longest = max((len(row[column]) for row in self.rows), default=0)
                # The first column holds names: it wraps last, if there is another column of texts.
                width = min(longest, _NAME_WIDTH) if column == 0 and len(texts) > 1 else None
                table.add_column(Text(shown(name)), overflow="fold", min_width=width)
        for row in self.rows:
            table.add_row(*(Text(shown(cell)) for cell in row))
        note = [Padding(Text(shown(self.note)), (0, 0, 1, 1), expand=False)] if self.note else []
        return Group(Text(shown(self.title), style="bold"), *([table] if self.rows else []), *note)

    def markdown(self) -> str:
        """The table in Markdown."""
        line = ["---:" if self.is_number(column) else "---" for column in range(len(self.head))]
        head, *rows = ([in_markdown(cell) for cell in row] for row in (self.head, *self.rows))
        table = [f"| {' | '.join(cells)} |" for cells in (head, line, *rows)] if rows else []
        return "\n".join(
            [f"**{in_markdown(self.title)}**", "", *table, *(["", in_markdown(self.note)] if self.note else [])]
        )

    def is_number(self, column: int) -> bool:
        """Whether a column has only numbers; never the first one, which has names."""
        return column > 0 and all(_NUMBER.fullmatch(row[column]) for row in self.rows)
