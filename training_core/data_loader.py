"""From lines in a file to token ids: every line ends in exactly one account."""

import codecs
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from training_core.chat_encoding import ChatEncoder, Message
from training_core.config import RunConfig
from training_core.rows import BadLineError, DataError, Problem, Record, Row, parse_row

logger = logging.getLogger(__name__)

SYSTEM_TEXT = "You decide customer cases strictly by the policy document. Answer with one JSON object and nothing else."
IGNORED_LABEL = -100
MOST_LISTED = 20


@dataclass(frozen=True)
class LoadedRows:
    """What a file holds: usable rows, problems, and the raw bytes of each refused line. Blank lines count nowhere."""

    file: str
    lines: int
    rows: list[Row]
    problems: list[Problem]
    refused: list[bytes]


@dataclass(frozen=True)
class Account:
    """Where the lines of one file went: ``lines`` is the sum of the others."""

    file: str
    lines: int
    trained: int
    held_out: int
    duplicates: int
    refused: int
    overlong: int

    def __post_init__(self) -> None:
        used = self.trained + self.held_out + self.duplicates + self.refused + self.overlong
        assert self.lines == used, f"{self.file}: {self.lines} lines in, {used} accounted for"


@dataclass(frozen=True)
class DataReport:
    """Everything the data stage found out, for people and for the registry."""

    accounts: list[Account]
    decisions: dict[str, int]
    problems: list[Problem]


@dataclass(frozen=True)
class TrainingData:
    """Encoded rows and their report.

    Columns: ``input_ids`` and ``labels`` (int lists of one length; the answer carries labels, the prompt does not),
    ``line``, ``decision``, and ``group``, the value of the case's field ``group_by``; held-out rows also have
    ``record``, the row as JSON.
    """

    train: Dataset
    held_out: Dataset
    report: DataReport
    refused: list[bytes]


def load_jsonl(path: Path | str) -> LoadedRows:
    """Read native rows, one JSON object a line, split on ``\\n`` only; a bad line becomes a ``Problem``, never a crash.

    A row is ``{"instruction": str, "input": {..., "policy_document": str}, "output": {"decision": str, "reason": str,
    "customer_response": str, "next_action": str, ...}}``. Raises ``OSError`` when the file cannot be read.
    """
    rows: list[Row] = []
    problems: list[Problem] = []
    refused: list[bytes] = []
    for number, raw in _numbered_lines(Path(path)):
        try:
            rows.append(Row(str(path), number, parse_row(raw)))
        except BadLineError as bad:
            problems.append(Problem(str(path), number, *bad.args))
            refused.append(raw if raw.endswith(b"\n") else raw + b"\n")
    return LoadedRows(str(path), len(rows) + len(refused), rows, problems, refused)


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if raw.removeprefix(codecs.BOM_UTF8).strip(b" \t\r\n"):  # JSON's white space, nothing else
                yield number, raw


def build_user_message(record: Record) -> str:
    """Policy first, then what differs from row to row: rows of one policy share a long run of first tokens."""
    case = {name: value for name, value in record["input"].items() if name != "policy_document"}
    return (
        f"## Policy document\n\n{record['input']['policy_document']}\n\n"
        f"## Instruction\n\n{record['instruction']}\n\n"
        f"## Case\n\n{json.dumps(case, ensure_ascii=False)}"
    )


def build_assistant_message(record: Record) -> str:
    """The expected answer: the row's output as one line of JSON."""
    return json.dumps(record["output"], ensure_ascii=False)


def format_as_chat(record: Record) -> list[Message]:
    """A row as system, user and assistant messages; a case still without output lacks the last, and nothing else."""
    messages = [
        {"role": "system", "content": SYSTEM_TEXT},
        {"role": "user", "content": build_user_message(record)},
    ]
    if "output" in record:
        messages.append({"role": "assistant", "content": build_assistant_message(record)})
    return messages


def build_datasets(config: RunConfig, tokenizer: PreTrainedTokenizerFast) -> TrainingData:
    """Read, check, encode and split the rows of a run.

    Raises ``DataError`` when too many lines are refused, when nothing is left to train on or to hold out, or when a
    row is overlong and ``overlong`` is ``error``.
    """
    sources = load_sources(config)
    unique, duplicates = _set_duplicates_apart(config, sources)
    whole, broken = _encode_rows(config, ChatEncoder.of(tokenizer), unique)
    fitting, overlong = _set_overlong_apart(config, whole)
    held_out, train = _partition(fitting, lambda item: _is_held_out(config, item.row))
    _demand_rows(train, held_out)
    fates = {
        "trained": [item.row for item in train],
        "held_out": [item.row for item in held_out],
        "duplicates": duplicates,
        "overlong": [item.row for item in overlong],
    }
    report = DataReport(
        accounts=[_account(source, fates, broken) for source in sources],
        decisions=dict(Counter(item.row.record["output"]["decision"] for item in fitting)),
        problems=[*(problem for source in sources for problem in source.problems), *broken],
    )
    for account in report.accounts:
        logger.info("Rows: %s", account)
    return TrainingData(
        train=Dataset.from_list([item.columns for item in train]),
        held_out=Dataset.from_list([item.columns | {"record": json.dumps(item.row.record)} for item in held_out]),
        report=report,
        refused=[*(raw for source in sources for raw in source.refused), *(_line(problem) for problem in broken)],
    )


@dataclass(frozen=True)
class _Item:
    row: Row
    columns: dict[str, Any]


def load_sources(config: RunConfig) -> list[LoadedRows]:
    """The rows of ``eval_path``, if given, then those of ``dataset_path``.

    Raises ``DataError`` when a file's share of unusable lines is above ``max_refused_share`` or no row is left.
    """
    sources = [load_jsonl(path) for path in (config.eval_path, config.dataset_path) if path]
    unfit = [
        source for source in sources if len(source.refused) > config.max_refused_share * source.lines or not source.rows
    ]
    if unfit:
        raise DataError("\n".join(_describe_unfit(config, source) for source in unfit))
    return sources


def _describe_unfit(config: RunConfig, source: LoadedRows) -> str:
    return "\n".join(
        [
            f"{source.file}: {len(source.refused)} of {source.lines} lines cannot be used; at most "
            f"{config.max_refused_share:.0%} may be (max_refused_share), and one row at least must be left."
            if source.lines
            else f"{source.file}: there are no rows in it; it needs one JSON object a line.",
            *(f"  - {problem}" for problem in source.problems[:MOST_LISTED]),
            *([f"  … and {len(source.problems) - MOST_LISTED} more"] if len(source.problems) > MOST_LISTED else []),
        ]
    )


def _set_duplicates_apart(config: RunConfig, sources: list[LoadedRows]) -> tuple[list[Row], list[Row]]:
    """A row is a duplicate when prompt and answer were seen before, or when its prompt is held out in eval_path."""
    seen: set[tuple[str, str]] = set()
    held_out_prompts: set[str] = set()
    unique, duplicates = [], []
    for row in (row for source in sources for row in source.rows):
        prompt, answer = (
            _digest(row.record["instruction"], row.record["input"]),
            _digest(row.record["output"]),
        )
        if (prompt, answer) in seen or (row.file == config.dataset_path and prompt in held_out_prompts):
            duplicates.append(row)
            continue
        unique.append(row)
        seen.add((prompt, answer))
        if row.file == config.eval_path:
            held_out_prompts.add(prompt)
    return unique, duplicates


def _encode_rows(config: RunConfig, encoder: ChatEncoder, rows: list[Row]) -> tuple[list[_Item], list[Problem]]:
    """Encoded rows, and a problem for each whose answer does not survive tokenisation to the letter."""
    items, broken = [], []
    for row in rows:
        messages = format_as_chat(row.record)
        prompt, answer = encoder.encode_prompt(messages[:-1]), encoder.encode_answer(messages[-1]["content"])
        if encoder.decode_answer(answer) != messages[-1]["content"]:
            broken.append(Problem(row.file, row.line, "output", "does not survive tokenisation", "use plain Unicode"))
            continue
        columns = {
            "input_ids": prompt + answer,
            "labels": [IGNORED_LABEL] * len(prompt) + answer,
            "line": row.line,
            "decision": row.record["output"]["decision"],
            "group": str(row.record["input"].get(config.group_by, "")),
        }
        items.append(_Item(row, columns))
    return items, broken


def _set_overlong_apart(config: RunConfig, items: list[_Item]) -> tuple[list[_Item], list[_Item]]:
    overlong, fitting = _partition(items, lambda item: len(item.columns["input_ids"]) > config.max_seq_length)
    places = [f"{item.row.file}:{item.row.line} ({len(item.columns['input_ids'])} tokens)" for item in overlong]
    if places and config.overlong == "error":
        raise DataError(
            f"{len(places)} rows are longer than {config.max_seq_length} tokens: {', '.join(places[:MOST_LISTED])}"
        )
    if places:
        logger.warning("%d rows are overlong and dropped: %s", len(places), ", ".join(places[:MOST_LISTED]))
    return fitting, overlong


def _is_held_out(config: RunConfig, row: Row) -> bool:
    """The side of a row depends on its case and the seed alone, so it is the same next week among other rows."""
    if config.eval_path:
        return row.file == config.eval_path
    case = {name: value for name, value in row.record["input"].items() if name != "policy_document"}
    return int(_digest(config.seed, case or row.record["instruction"])[:8], 16) / 16**8 < config.val_split


def _demand_rows(train: list[_Item], held_out: list[_Item]) -> None:
    if not train:
        raise DataError("No row is left to train on; see the rows' account above, and max_seq_length")
    if not held_out:
        raise DataError("No row is held out to evaluate on; raise val_split, give eval_path or add rows")


def _account(source: LoadedRows, fates: Mapping[str, Sequence[Row]], broken: list[Problem]) -> Account:
    counts = {fate: sum(row.file == source.file for row in rows) for fate, rows in fates.items()}
    refused = len(source.refused) + sum(problem.file == source.file for problem in broken)
    return Account(file=source.file, lines=source.lines, refused=refused, **counts)


def _line(problem: Problem) -> bytes:
    return next(raw for number, raw in _numbered_lines(Path(problem.file)) if number == problem.line)


def _partition(items: list[_Item], belongs: Callable[[_Item], bool]) -> tuple[list[_Item], list[_Item]]:
    """The items that belong, then the others, each in their order."""
    return [item for item in items if belongs(item)], [item for item in items if not belongs(item)]


def _digest(*values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
