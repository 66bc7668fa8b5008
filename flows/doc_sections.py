"""The parts of README.md and docs/ that a command writes, each between two comments with its name."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"


def write_section(page: Path, name: str, text: str) -> None:
    """Replace the text between ``<!-- name:begin … -->`` and ``<!-- name:end -->``.

    Raises ``ValueError`` when the page has no such comments.
    """
    before, begin, _, end, after = _split(page, name)
    page.write_text(f"{before}{begin}{text}{end}{after}", encoding="utf-8")


def read_section(page: Path, name: str) -> str:
    """The text between the two comments of that name; raises ``ValueError`` when the page has none."""
    return _split(page, name)[2]


def _split(page: Path, name: str) -> tuple[str, str, str, str, str]:
    before, begin, rest = page.read_text(encoding="utf-8").partition(f"<!-- {name}:begin")
    comment, closed, rest = rest.partition("-->\n")
    text, end, after = rest.partition(f"<!-- {name}:end -->")
    if not end:
        raise ValueError(f"expected the comments {name}:begin and {name}:end in {page}, found no such pair")
    return before, begin + comment + closed, text, end, after
