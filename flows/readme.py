"""Sections of the README that are written by a command, each between two comments that bear its name."""

from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def write_section(name: str, text: str) -> None:
    """Put the text between ``<!-- name:begin -->`` and ``<!-- name:end -->``."""
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    before, rest = README.read_text(encoding="utf-8").split(begin)
    README.write_text(before + begin + text + end + rest.split(end)[1], encoding="utf-8")
