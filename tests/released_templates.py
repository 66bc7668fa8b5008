"""Chat templates as they were released with their bases; TRL's package holds them."""

from pathlib import Path

import trl


def released_template(name: str) -> str:
    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
