"""Writes the demo's output into the README: ``python -m flows.demo_output`` runs ``sft-flow demo`` (minutes)."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from flows.doc_sections import README, ROOT, write_section

SECTION = "demo"
SHOWN_FOLDER = "/home/you/sft-flow"
MOST_TABLE_ROWS = 6
ROWS_OF_A_LONG_TABLE = 2

_DEMO = [sys.executable, "-c", "from flows.cli import main; main()", "demo"]
_COLUMNS = 100
_RULE = re.compile(r"\s*─[─ ]*")
_FIGURE = re.compile(r"\(?[-–<>]?\d[\d.,:%–/×-]*\)?[.;,]?")
_LABELLED = re.compile(r"(\S+) {2,}\S")


def run_demo(arguments: Sequence[str] = ()) -> str:
    """What a first ``sft-flow demo`` prints at its end, from its first table on, as it reads in SHOWN_FOLDER.

    Raises ``subprocess.CalledProcessError`` when the demo fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Without a server's address the demo starts servers of its own in its folder.
        elsewhere = ("PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI")
        environment = {name: value for name, value in os.environ.items() if name not in elsewhere}
        environment |= {"PYTHONPATH": str(ROOT), "COLUMNS": str(_COLUMNS)}
        done = subprocess.run(
            [*_DEMO, *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        return from_first_table(done.stdout).replace(str(Path(folder).resolve()), SHOWN_FOLDER)


def from_first_table(output: str) -> str:
    """The end of a run's output, from the title of its first table on; raises ``ValueError`` without a table."""
    lines = [line.rstrip() for line in output.splitlines()]
    rule = _place_of_rule(lines)
    if rule is None:
        raise ValueError("expected the demo to print tables, found none in its output")
    # Above the rule: the title, an empty line, the headings of the columns.
    titles = [place for place in range(rule - 1) if lines[place] and not lines[place + 1]]
    return "\n".join(lines[titles[-1] :]) + "\n"


def shortened(output: str) -> str:
    """The same output with the first rows of each long table and ``…`` for the others."""
    blocks = [list(lines) for _, lines in groupby(output.splitlines(), key=bool)]
    return "\n".join(line for block in blocks for line in _shortened_block(block)) + "\n"


def _shortened_block(lines: list[str]) -> list[str]:
    rule = _place_of_rule(lines)
    if rule is None or len(lines) - rule - 1 <= MOST_TABLE_ROWS:
        return lines
    return [*lines[: rule + 1 + ROWS_OF_A_LONG_TABLE], " …"]


def _place_of_rule(lines: Sequence[str]) -> int | None:
    """The place of the first line below the headings of a table."""
    return next((place for place, line in enumerate(lines) if _RULE.fullmatch(line)), None)


def layout(output: str) -> list[str]:
    """What every run prints alike: the words of titles, headings and rows of tables, and the labels of the last lines.

    A line ``base   40.2%  32%–49%`` becomes ``base``, a line ``Adapter  /home/…`` becomes ``Adapter``, and the verdict
    its first words.
    """
    tables, closing = _parted(output)
    words = [" ".join(word for word in line.split() if not _FIGURE.fullmatch(word)) for line in tables]
    labels = [found[1] for line in closing if (found := _LABELLED.match(line))]
    verdicts = [line.split()[0] for line in closing if re.match(r"\S+ version \d+ ", line)]
    return [*(line for line in words if line), *verdicts, *labels]


def _parted(output: str) -> tuple[list[str], list[str]]:
    """The lines up to the end of the last table, without rules, and the lines after it."""
    lines = output.splitlines()
    last_rule = max(place for place, line in enumerate(lines) if _RULE.fullmatch(line))
    end = next((place for place in range(last_rule, len(lines)) if not lines[place]), len(lines))
    return [line for line in lines[:end] if not _RULE.fullmatch(line)], lines[end:]


def main() -> None:
    """Replace the output in the README."""
    output = shortened(run_demo(sys.argv[1:]))
    write_section(README, SECTION, f"```\n{output}```\n")
    sys.stdout.write(output)


if __name__ == "__main__":
    main()
