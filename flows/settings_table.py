"""Writes the README's table of settings from RunConfig: ``python -m flows.settings_table``."""

import sys
from pathlib import Path

from training_core.config import settings_info

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- settings:begin -->\n", "<!-- settings:end -->"


def settings_table() -> str:
    """Every setting with its default and its help, as Markdown."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for name, info in settings_info().items():
        default = "" if info.default is None else f"`{info.default}`"
        lines.append(f"| `{name}` | {default} | {info.description} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Replace the table in the README."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    README.write_text(before + BEGIN + settings_table() + END + rest.split(END)[1], encoding="utf-8")
    sys.stdout.write(f"{README.name}: {len(settings_info())} settings\n")


if __name__ == "__main__":
    main()
