"""Any bytes give a value, a row or a problem, in agreement with slower and simpler readers."""

import json
import unicodedata
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from row_samples import build, record

from benchmarks.fuzz_rows import fuzz, make_files
from samples.row_formats import FORMATS, to_text
from training_core.model_setup import load_tokenizer
from training_core.rows import files
from training_core.rows.formats import detect_format, to_record
from training_core.rows.strict_json import BadLineError, parse_json

TRICKY = st.sampled_from(
    [
        '"',
        "\\",
        '":',
        '" :',
        "\\u",
        "\x00",
        "\x7f",
        "\x85",
        "\x9b",
        "e\u0301",
        "\u0301",
        "\ud800",
        "\n",
        "\t",
        "{",
        "}",
        "é",
    ]
)
texts = st.lists(st.one_of(TRICKY, st.characters()), max_size=6).map("".join)
numbers = st.one_of(st.integers(), st.integers(-(10**40), 10**40), st.floats())
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=15,
)
PIECES = [
    *('"a"', '"b"', '"\\u0061"', '"a\\\\"', '"\\""', "é", '"e\u0301"', '"\\u00e9"', ":", " :", ",", "{", "}", "[", "]"),
    *("1", "-1.5e3", "9" * 22, "1e999", "NaN", "null", "true", " ", "\t", "\n", "\\", '"', "\x7f", "\\ud800"),
]


class _RejectedError(ValueError):
    """For JSON that the standard library accepts and rows must not have."""


def slow_parse(text: str) -> Any:
    """Parse with the standard library and apply the additional rules one by one."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        composed = {unicodedata.normalize("NFC", key): value for key, value in pairs}
        if len(composed) < len(pairs):
            raise _RejectedError
        return composed

    def reject(name: str) -> None:
        raise _RejectedError(name)

    return _composed(json.loads(text, object_pairs_hook=unique, parse_constant=reject))


def _composed(value: Any) -> Any:
    if isinstance(value, float) and abs(value) == float("inf"):
        raise _RejectedError
    if isinstance(value, dict):
        return {_composed(key): _composed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_composed(item) for item in value]
    if isinstance(value, str):
        rejected = [c for c in value if unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n\r\x85"]
        if rejected:
            raise _RejectedError
        return unicodedata.normalize("NFC", value)
    return value


def agree(raw: bytes) -> None:
    try:
        expected = slow_parse(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        with pytest.raises(BadLineError) as caught:
            parse_json(raw)
        assert len(caught.value.args) == 3
    else:
        found = parse_json(raw)
        assert repr(found) == repr(expected)  # 1 is not 1.0 and not True


@given(value=values, ensure_ascii=st.booleans(), blank=st.sampled_from(["", " ", "\t"]))
@settings(max_examples=250, deadline=None)
def test_parse_json_agrees_with_the_standard_library(value: Any, ensure_ascii: bool, blank: str) -> None:
    text = json.dumps(value, ensure_ascii=ensure_ascii, separators=(f"{blank},", f"{blank}:{blank}"))
    agree(text.encode("utf-8", "surrogatepass"))


@given(text=st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
@settings(max_examples=250, deadline=None)
def test_parse_json_agrees_on_almost_valid_json(text: str) -> None:
    for around in (text, f"{{{text}}}", f'{{"a": {text}}}', f'{{"a": 1, {text}: 2}}'):
        agree(around.encode())


@given(raw=st.binary(max_size=40))
@settings(max_examples=100, deadline=None)
def test_parse_json_accepts_or_rejects_any_bytes(raw: bytes) -> None:
    for around in (raw, b'{"a": "' + raw + b'"}'):
        try:
            parse_json(around)
        except BadLineError as problem:
            assert len(problem.args) == 3


def is_text(value: str) -> bool:
    """Whether every format can hold a text: not blank, and no white space at its ends."""
    return bool(value.strip()) and value == value.strip()


plain = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20).filter(is_text)
facts = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**30), 10**30), plain),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(plain, inner, max_size=3)),
    max_leaves=8,
)


@given(instruction=plain, case=st.dictionaries(plain, facts, max_size=4), reason=plain)
@settings(max_examples=80, deadline=None)
def test_random_case_is_the_same_record_in_every_format(instruction: str, case: dict[str, Any], reason: str) -> None:
    row = record(case, {"reason": reason}, instruction=instruction)
    found = []
    for write_as in FORMATS.values():
        try:
            value = parse_json(to_text(write_as(row)).encode())
            row_format = detect_format(value)
            assert row_format and (row_format.name == "native" or row_format.holds_cases)
            found.append(to_record(value, row_format))
        except BadLineError as problem:
            found.append({"rejected": problem.args[1]})
    assert all(other == found[0] for other in found)


@given(elements=st.lists(values, max_size=5), indent=st.sampled_from([None, 1]), size=st.integers(1, 9))
@settings(max_examples=80, deadline=None)
def test_array_split_agrees_with_the_standard_library(elements: list[Any], indent: int | None, size: int) -> None:
    content = json.dumps(elements, indent=indent).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_READ_SIZE", size)
        lines = list(files._split_array(BufferedReader(BytesIO(content))))
    assert [repr(json.loads(line.raw)) for line in lines] == [repr(value) for value in json.loads(content)]


def test_reader_never_crashes_on_mutated_files(tmp_path: Path) -> None:
    counts = fuzz(20_000, 1, tmp_path / "rows")
    assert counts["mutated lines"] >= 20_000
    assert min(counts["rows"], counts["rejected"], counts["bad files"]) > 50


def test_report_exists_for_mutated_files(tmp_path: Path, tiny_base: Path) -> None:
    """Covers encoding, splits and report too; accounts that do not add up would raise."""
    tokenizer = load_tokenizer(tiny_base)
    usable = 0
    for place, (content, _) in enumerate(make_files(1_000, seed=2)):
        path = tmp_path / f"{place}.jsonl"
        path.write_bytes(content)
        built = build(path, tokenizer, label_audit="samples.cases:audit", overlong="trim_policy", max_seq_length=300)
        assert all(len(row["input_ids"]) <= 300 for row in built.rows)
        usable += len(built.rows)
    assert usable > 20
