"""Generated sections of a page: the text between two comments is read and replaced, and nothing else."""

from pathlib import Path

import pytest

from flows.doc_sections import read_section, write_section

PAGE = """\
# Title
<!-- one:begin written by `command` -->
old
<!-- one:end -->
middle
<!-- two:begin -->
<!-- two:end -->
end
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    path.write_text(PAGE, encoding="utf-8")
    return path


def test_section_is_replaced_and_the_rest_kept(page: Path) -> None:
    write_section(page, "one", "new\nlines\n")
    assert page.read_text(encoding="utf-8") == PAGE.replace("old\n", "new\nlines\n")
    assert read_section(page, "one") == "new\nlines\n"


def test_empty_section_can_be_filled(page: Path) -> None:
    write_section(page, "two", "text\n")
    assert read_section(page, "two") == "text\n"
    assert read_section(page, "one") == "old\n"


def test_missing_section_is_an_error_and_writes_nothing(page: Path) -> None:
    with pytest.raises(ValueError, match="expected the comments three:begin and three:end"):
        write_section(page, "three", "text\n")
    assert page.read_text(encoding="utf-8") == PAGE
