"""Trimming removes whole sections of a policy and never touches case or answer."""

from pathlib import Path

import pytest
from row_samples import Record, answer_ids, build, record, records, with_policy, write
from transformers import PreTrainedTokenizerFast

from samples.cases import policy_names, policy_text
from training_core.evaluation.scores import prompt_of
from training_core.model_setup import load_tokenizer
from training_core.prompts.chat_encoding import ChatEncoder
from training_core.prompts.messages import build_assistant_message, format_as_chat
from training_core.prompts.policy_trimming import split_sections, trim_policy

SECTIONS = [f"{i}. Section {i}\n{'Within days, of course. ' * 8}\n\n" for i in range(1, 7)]
LONG = with_policy(record(), "".join(SECTIONS).strip())


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(tiny_base)


@pytest.fixture(scope="module")
def encoder(tokenizer: PreTrainedTokenizerFast) -> ChatEncoder:
    return ChatEncoder.of(tokenizer)


def length(encoder: ChatEncoder, row: Record) -> int:
    return len(encoder.encode_prompt(format_as_chat(row)[:-1]))


@pytest.mark.parametrize(
    ("policy", "sections"),
    [
        ("# A\nx\n## B\ny\n### C\nz", 3),
        ("Preface.\n\n1. One\nx\n2) Two\ny\n2.1. Deep\nz", 4),
        ("RETURNS\nx\n\nREFUNDS & FEES\ny", 2),
        ("First.\n\nSecond.\nStill.\n\n\n\nThird.", 3),
        ("only one", 1),
        ("- a\n- b\n#hashtag\n1.5 kilos", 1),
    ],
)
def test_split_sections_uses_headings_or_else_paragraphs(policy: str, sections: int) -> None:
    found = split_sections(policy)
    assert len(found) == sections
    assert "".join(found) == policy
    assert all(section.strip() for section in found)


@pytest.mark.parametrize("name", policy_names())
def test_split_sections_loses_nothing_of_sample_policies(name: str) -> None:
    policy = policy_text(name).strip()
    assert len(split_sections(policy)) > 4
    assert "".join(split_sections(policy)) == policy


@pytest.mark.parametrize("kept", [1, 2, 3, 5, 6])
def test_trim_policy_keeps_the_first_sections_that_fit(encoder: ChatEncoder, kept: int) -> None:
    expected = with_policy(LONG, "".join(SECTIONS[:kept]).strip())
    room = length(encoder, expected)
    for slack in (0, 5):
        trimmed = trim_policy(LONG, encoder, room + slack)
        assert trimmed is not None
        assert trimmed.record == expected
        assert trimmed.kept == f"{kept} of 6"
        assert list(trimmed.prompt) == encoder.encode_prompt(format_as_chat(expected)[:-1])
    smaller = trim_policy(LONG, encoder, room - 1)
    assert smaller is None if kept == 1 else smaller and smaller.kept == f"{kept - 1} of 6"


def test_trim_policy_skips_a_section_that_never_fits(encoder: ChatEncoder) -> None:
    sections = [SECTIONS[0], f"2. Huge\n{'Again and again. ' * 500}\n\n", SECTIONS[2].strip()]
    expected = with_policy(record(), sections[0] + sections[2])
    trimmed = trim_policy(with_policy(record(), "".join(sections)), encoder, length(encoder, expected))
    assert trimmed and trimmed.record == expected and trimmed.kept == "2 of 3"


def test_trim_policy_returns_none_if_nothing_can_be_trimmed(encoder: ChatEncoder) -> None:
    assert trim_policy(LONG, encoder, 10) is None
    conversation = {"messages": [{"role": "user", "content": "x"}], "output": record()["output"]}
    assert trim_policy(conversation, encoder, 5) is None


def test_trimmed_rows_are_listed_and_keep_their_answers(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, encoder: ChatEncoder
) -> None:
    long = [with_policy(row, LONG["input"]["policy_document"]) for row in records(6, start=50)]
    hopeless = record({"case_id": "A-99"}, {"reason": "x " * 400})
    rows = [*records(6), *long, hopeless]
    room = length(encoder, with_policy(LONG, "".join(SECTIONS[:3]).strip())) + 60
    built = build(write(tmp_path / "rows.jsonl", rows), tokenizer, overlong="trim_policy", max_seq_length=room)
    (account,) = built.report.accounts
    assert (account.overlong, account.trained + account.held_out) == (1, 12)
    finding = built.finding("trimmed policies")
    assert finding and finding.count == 6
    assert [place.split(": ")[0].rpartition(":")[2] for place in finding.places] == ["7", "8", "9", "10", "11", "12"]
    for row in built.rows:
        assert len(row["input_ids"]) <= room
        written = rows[row["line"] - 1]
        assert tokenizer.decode(answer_ids(row)[:-1]) == build_assistant_message(written)
        assert written["input"]["case_id"] in tokenizer.decode(prompt_of(row))


def test_overlong_rows_are_dropped_or_fail_the_run(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path / "rows.jsonl", [*records(9), record({"case_id": "A-9"}, {"reason": "x " * 500})])
    dropped = build(path, tokenizer, max_seq_length=300)
    assert dropped.report.failures == []
    assert dropped.report.accounts[0].overlong == 1
    failed = build(path, tokenizer, max_seq_length=300, overlong="error")
    assert [failure.split(":")[0] for failure in failed.report.failures] == ["overlong"]
    for built in (dropped, failed):
        finding = built.finding("overlong rows")
        assert finding and f"{path}:10" in finding.places[0]


def test_overlong_begins_one_token_above_the_limit(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path / "rows.jsonl", [*records(9), record({"case_id": "A-9"}, {"reason": "x " * 50})])
    longest = max(len(row["input_ids"]) for row in build(path, tokenizer).rows)
    assert build(path, tokenizer, max_seq_length=longest).report.accounts[0].overlong == 0
    shorter = build(path, tokenizer, max_seq_length=longest - 1)
    assert shorter.report.accounts[0].overlong == 1
    assert 10 not in set.union(*shorter.lines)
