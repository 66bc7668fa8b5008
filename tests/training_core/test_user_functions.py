"""Whatever a function of the user does wrong is reported with its name and the row."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from row_samples import build, records, write

from training_core.config import SettingsError
from training_core.evaluation.text_scores import AnswerJudge
from training_core.model_setup import load_tokenizer
from training_core.rows.strict_json import DataError
from training_core.user_functions import UserFunction

MODULE = """
import sys
fine = None
def raises(record, answer=None):
    return record["input"]["days"]
def exits(record, answer=None):
    sys.exit(3)
def asserts(record, answer=None):
    assert record is None
def stops(record, answer=None):
    raise GeneratorExit
class Odd(BaseException): pass
def odd(record, answer=None):
    raise Odd("no")
def long(record, answer=None):
    raise ValueError("line\\n" * 999)
def changes(record, answer=None):
    record["output"]["decision"] = "Other"
    record.clear()
def number(record, answer=None):
    return 5.5
def truth(record, answer=None):
    return True
def mapping(record, answer=None):
    return {"decision": "Eligible"}
def generator(record, answer=None):
    yield "too short"
def value(record, answer=None):
    return Odd
def mixed(record, answer=None):
    return ["too short", None]
def nothing(record, answer=None):
    return " "
def one(record, answer=None):
    return "too short"
def several(record, answer=None):
    return ["too short", 5]
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A module of the user, of a name of its own, since Python imports a name once."""
    name = "rules_" + re.sub(r"\W", "_", request.node.name)
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


@pytest.mark.parametrize(
    ("function", "words"),
    [
        *(("raises", "KeyError: 'days'"), ("exits", "SystemExit: 3"), ("asserts", "AssertionError")),
        *(("stops", "GeneratorExit"), ("odd", "Odd: no"), ("long", "ValueError: line line line")),
    ],
)
def test_function_that_fails_is_named_with_its_row(module: str, function: str, words: str) -> None:
    audit = UserFunction.load("label_audit", f"{module}:{function}")
    with pytest.raises(DataError) as caught:
        audit.call("rows.jsonl:17", {"input": {}})
    text = str(caught.value)
    assert text.startswith(f"label_audit: {module}:{function} failed for the row at rows.jsonl:17: {words}")
    assert f"{module}.py, line " in text
    assert "\n" not in text and len(text) < 800


@pytest.mark.parametrize(
    ("method", "expected", "functions"),
    [
        ("decision", "a decision or None", ["number", "truth", "mapping", "generator", "value", "mixed", "nothing"]),
        ("problems", "a list of problems, each a text", ["number", "truth", "mapping", "generator", "value", "mixed"]),
    ],
)
def test_other_value_than_expected_names_function_and_row(
    module: str, method: str, expected: str, functions: list[str]
) -> None:
    for name in functions:
        audit = UserFunction.load("label_audit", f"{module}:{name}")
        with pytest.raises(DataError) as caught:
            getattr(audit, method)("rows.jsonl:17", {"input": {}})
        start, end = (
            f"label_audit: {module}:{name} returned ",
            f"rows.jsonl:17, expected {expected}; correct the function",
        )
        assert str(caught.value).startswith(start) and str(caught.value).endswith(end)


@pytest.mark.parametrize("setting", ["label_audit", "answer_audit"])
def test_function_gets_a_copy_of_the_row(tiny_base: Path, tmp_path: Path, module: str, setting: str) -> None:
    settings: dict[str, Any] = {setting: f"{module}:changes"}
    built = build(write(tmp_path / "rows.jsonl", records(12)), load_tokenizer(tiny_base), **settings)
    assert [decision.decision for decision in built.report.decisions] == ["Eligible"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def audit(:", "SyntaxError"),
        ("import sys; sys.exit(1)", "SystemExit: 1"),
        ("x = unknown", "NameError"),
        ("", "audit"),
        ("class Own(BaseException): pass\nraise Own('no')", "Own: no"),
        ("import not_there", "ModuleNotFoundError: No module named 'not_there'"),
    ],
)
def test_module_that_cannot_be_imported_is_one_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, words: str
) -> None:
    name = f"broken_{words.partition(':')[0]}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SettingsError) as caught:
        UserFunction.load("answer_audit", f"{name}:audit")
    (problem,) = caught.value.problems
    assert problem.startswith(f"answer_audit: cannot import '{name}:audit': ")
    assert words in problem


@pytest.mark.parametrize("name", ["nowhere:audit", "builtins:print", "a..b:c", "os:nothing"])
def test_name_without_a_function_of_the_user_is_one_problem(name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        UserFunction.load("label_audit", name)
    (problem,) = caught.value.problems
    assert problem.startswith(f"label_audit: cannot import {name!r}: ")
    assert "put its module into the working directory or on PYTHONPATH" in problem
    assert "frozen" not in problem and "pkgutil" not in problem


def test_value_that_is_no_function_is_one_problem(module: str) -> None:
    with pytest.raises(SettingsError, match="which is not a function"):
        UserFunction.load("label_audit", f"{module}:fine")


@pytest.mark.parametrize("setting", ["label_audit", "answer_audit"])
def test_audit_that_fails_ends_the_data_stage(tiny_base: Path, tmp_path: Path, module: str, setting: str) -> None:
    path = write(tmp_path / "rows.jsonl", records(3))
    settings: dict[str, Any] = {setting: f"{module}:raises"}
    with pytest.raises(DataError, match=rf"{setting}: .*rows\.jsonl:1: KeyError"):
        build(path, load_tokenizer(tiny_base), **settings)


@pytest.mark.parametrize(("function", "problem"), [("one", "too short"), ("several", "too short")])
def test_expected_answers_with_problems_are_reported(
    tiny_base: Path, tmp_path: Path, module: str, function: str, problem: str
) -> None:
    path = write(tmp_path / "rows.jsonl", records(12))
    built = build(path, load_tokenizer(tiny_base), answer_audit=f"{module}:{function}")
    finding = built.finding("expected answers with problems")
    assert finding and finding.count == 12
    assert finding.places[0].endswith(f"rows.jsonl:1: {problem}")


def test_answer_audit_that_fails_names_the_held_out_row(module: str) -> None:
    judge = AnswerJudge(audit=UserFunction.load("answer_audit", f"{module}:raises"))
    (row,) = records(1)
    with pytest.raises(DataError, match=r"answer_audit: .* for the row at held_out\.jsonl:4: KeyError"):
        judge.judge(row, json.dumps(row["output"]), "held_out.jsonl:4")
