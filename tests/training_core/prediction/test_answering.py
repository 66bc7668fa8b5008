"""Cases of one policy are answered together, each as it is alone, and each line says whether it can be used."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from row_samples import record, records, with_policy, write

from training_core.config import RunConfig
from training_core.dataset.answer_schema import schema_of_answers
from training_core.evaluation.generation import complete
from training_core.prediction.answering import Answerer, Progress, answer_cases
from training_core.prediction.cases import Case, find_cases
from training_core.prediction.lines import Answer, to_line, why_not_usable
from training_core.prediction.parts import Parts
from training_core.prompts.messages import format_as_chat
from training_core.training.adapter import SCHEMA_FILE

POLICIES = [f"POLICY {name}\n\n" + f"Rule {name} of many words to share. " * 12 + "End." for name in "abc"]


def lines_of(answerer: Answerer, rows: str, folder: Path) -> list[dict[str, object]]:
    windows = answer_cases(find_cases(rows), answerer, Parts(str(folder)), lambda _: None)
    return [json.loads(line) for lines in windows for line in lines]


def test_cases_are_answered_in_their_order(answerer: Answerer, tmp_path: Path) -> None:
    """Policies in turn: answering sorts them, the output does not."""
    made = [with_policy(row, POLICIES[number % 3]) for number, row in enumerate(records(40))]
    found = lines_of(answerer, write(tmp_path / "rows.jsonl", made), tmp_path)
    prompts = [answerer.encoder.encode_prompt(format_as_chat(row)[:-1]) for row in made]
    alone = [complete(answerer.loaded, [prompt], answerer.config, answerer.grammar)[0].tokens for prompt in prompts]
    assert [line["answer"] for line in found] == answerer.encoder.decode_answers(alone)
    assert len({line["answer"] for line in found}) > 3


def test_policy_is_computed_once_for_its_cases_in_a_window(answerer: Answerer, tmp_path: Path) -> None:
    made = [with_policy(row, POLICIES[number % 3]) for number, row in enumerate(records(39))]
    shapes: list[tuple[int, ...]] = []
    hook = answerer.loaded.model.get_base_model().register_forward_pre_hook(
        lambda _module, _args, inputs: shapes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    lines_of(answerer, write(tmp_path / "rows.jsonl", made), tmp_path)
    hook.remove()
    policy = min(len(answerer.encoder.encode_prompt([{"role": "user", "content": text}])) for text in POLICIES) // 2
    assert len([shape for shape in shapes if shape[1] > policy]) == 5, "three policies, two of them in two parts"


def test_overlong_cases_are_bad_rows(answerer: Answerer, tmp_path: Path) -> None:
    short = replace(answerer, config=replace(answerer.config, max_seq_length=200))
    rows = write(tmp_path / "rows.jsonl", [record(), with_policy(record(), "Rule. " * 400)])
    good, bad = lines_of(short, rows, tmp_path)
    assert good["error"] is None and good["answer"]
    assert bad["answer"] is None and str(bad["error"]).startswith("line: expected a prompt of at most 199 tokens")


def test_files_of_bad_rows_only_load_no_model(tmp_path: Path) -> None:
    """Nor does a job of which every part is there."""
    nothing = Answerer(tmp_path / "no base", tmp_path / "no adapter", RunConfig())
    found = lines_of(nothing, write(tmp_path / "rows.jsonl", [b"{", b"["]), tmp_path / "parts")
    assert [bool(line["error"]) for line in found] == [True, True]
    assert lines_of(nothing, str(tmp_path / "rows.jsonl"), tmp_path / "parts") == found


def test_held_answers_have_a_confidence_that_may_hand_over(answerer: Answerer, tmp_path: Path) -> None:
    adapter = shutil.copytree(answerer.adapter, tmp_path / "adapter")
    schema = schema_of_answers([GOOD, GOOD | {"decision": "Escalate"}])
    (adapter / SCHEMA_FILE).write_text(json.dumps(schema), encoding="utf-8")
    config = replace(answerer.config, constrain="schema", eval_max_new_tokens=60)
    rows = write(tmp_path / "rows.jsonl", [with_policy(row, POLICIES[0]) for row in records(7)])
    free = Answerer(answerer.base, adapter, config)
    found = lines_of(free, rows, tmp_path / "free")
    assert {line["decision"] for line in found} <= {"Eligible", "Escalate"}
    confidences = sorted({float(str(line["confidence"])) for line in found})
    assert 0 < confidences[0] < confidences[-1] <= 1
    assert [(line["usable"], line["hand_over"]) for line in found] == [(True, False)] * 7
    strict = lines_of(replace(free, min_confidence=confidences[-2]), rows, tmp_path / "strict")
    assert [line["hand_over"] for line in strict] == [line["confidence"] < confidences[-1] for line in found]


GOOD = {"decision": "Eligible", "reason": "r", "customer_response": "c", "next_action": "n"}


@pytest.mark.parametrize(
    ("answer", "ended", "reason"),
    [
        (json.dumps(GOOD), True, None),
        (json.dumps(GOOD | {"more": [1]}), True, None),
        (json.dumps(GOOD), False, "cut off after 3 tokens, the limit of this version"),
        ("Yes.", True, "expected one JSON object, got 'Yes.'"),
        ('{"decision": "A", "decision": "B"}', True, "expected one JSON object"),
        (json.dumps(GOOD | {"reason": " "}), True, "output.reason: expected a non-empty string"),
        (json.dumps({"decision": "Eligible"}), True, "output.reason: expected a non-empty string, got null"),
        (json.dumps(GOOD | {"decision": "Maybe"}), True, "output.decision: expected one of allowed_decisions"),
    ],
)
def test_answers_that_cannot_be_used_say_why(answerer: Answerer, answer: str, ended: bool, reason: str | None) -> None:
    config = replace(answerer.config, allowed_decisions=("Eligible", "Not Eligible"))
    found = why_not_usable(answer, ended=ended, config=config)
    assert found is reason is None or str(found).startswith(str(reason))
    line = json.loads(to_line(Case("f.jsonl", 7, {}), Answer(answer, found)))
    assert (line["usable"], line["decision"]) == ((True, "Eligible") if reason is None else (False, None))
    assert line["answer"] == answer


def test_progress_says_how_long_the_rest_takes() -> None:
    progress = Progress(lines=1_000, done=400)
    assert str(progress) == "400 of 1,000 lines"
    progress.add(100)
    progress.started -= 60
    assert str(progress) == "500 of 1,000 lines, about 0:05:00 left"
    progress.add(500)
    assert str(progress) == "1,000 of 1,000 lines"
