"""Writes the table of docs/settings.md from RunConfig: ``python -m flows.settings_table``."""

import sys
from typing import Any

from pydantic import TypeAdapter

from flows.doc_sections import DOCS, write_section
from training_core.config import RunConfig, settings_info

PAGE, SECTION = DOCS / "settings.md", "settings"

_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}  # of JSON Schema


def settings_table() -> str:
    """Every setting with its default, its choices or bounds, and its help, as Markdown."""
    schemas = TypeAdapter(RunConfig).json_schema()["properties"]
    lines = ["| setting | default | allowed | meaning |", "|---|---|---|---|"]
    for name, info in settings_info().items():
        default = "" if info.default in (None, ()) else f"`{_as_typed(info.default)}`"
        lines.append(f"| `{name}` | {default} | {_allowed(schemas[name])} | {info.description} |")
    return "\n".join(lines) + "\n"


def _as_typed(default: object) -> str:
    """The default as a person types it in YAML or as a flag."""
    if isinstance(default, tuple):
        return f"[{', '.join(default)}]"
    return str(default).lower() if isinstance(default, bool) else str(default)


def _allowed(schema: dict[str, Any]) -> str:
    choices = [True, False] if schema.get("type") == "boolean" else schema.get("enum", [])
    bounds = [f"{sign} {schema[name]}" for name, sign in _BOUNDS.items() if name in schema]
    return ", ".join([*(f"`{_as_typed(choice)}`" for choice in choices), *bounds])


def main() -> None:
    """Replace the table in the page."""
    write_section(PAGE, SECTION, settings_table())
    sys.stdout.write(f"{PAGE.name}: {len(settings_info())} settings\n")


if __name__ == "__main__":
    main()
