"""Writes the README's table of settings from RunConfig: ``python -m flows.settings_table``."""

import sys

from flows.readme import README, write_section
from training_core.config import settings_info


def settings_table() -> str:
    """Every setting with its default and its help, as Markdown."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for name, info in settings_info().items():
        default = "" if info.default is None else f"`{info.default}`"
        lines.append(f"| `{name}` | {default} | {info.description} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Replace the table in the README."""
    write_section("settings", settings_table())
    sys.stdout.write(f"{README.name}: {len(settings_info())} settings\n")


if __name__ == "__main__":
    main()
