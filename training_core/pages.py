"""What all HTML pages have in common: every value is escaped, wherever it comes from."""

from typing import Any

from jinja2 import Environment, StrictUndefined

from training_core.escaping import shown


def page_environment() -> Environment:
    """For the templates of pages: values are escaped after ``shown``; an unknown name is an error."""
    return Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown_value
    )


def _shown_value(value: Any) -> Any:
    return shown(value) if type(value) is str else value  # the template's own markup is a subclass
