"""Rows become token ids whose labels are exactly the answer; leakage keys are stable."""

import hashlib
import hmac
import json
import struct
import unicodedata
from pathlib import Path

import pytest
from row_samples import answer_ids, build, record, records, to_line, with_policy, write
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from samples.cases import generate_rows, policy_names, policy_text
from samples.row_formats import FORMATS
from training_core.data_loader import load_jsonl
from training_core.dataset.encoding import IGNORED_LABEL, LEAKAGE_SCHEME, digest_id, leakage_keys
from training_core.evaluation.scores import prompt_of
from training_core.evaluation.text_scores import parse_answer
from training_core.model_setup import load_tokenizer
from training_core.prompts.chat_encoding import ChatEncoder
from training_core.prompts.messages import SYSTEM_TEXT, build_assistant_message, build_user_message
from training_core.rows.strict_json import field_value


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(tiny_base)


def test_labels_are_exactly_the_answer_and_end_of_turn(sample_rows: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    by_line = {row.line: row.record for row in load_jsonl(sample_rows).rows}
    end_of_turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for row in build(sample_rows, tokenizer).rows:
        prompt, answer = prompt_of(row), answer_ids(row)
        assert row["input_ids"] == prompt + answer
        assert row["labels"] == [IGNORED_LABEL] * len(prompt) + answer
        assert answer.index(end_of_turn) == len(answer) - 1
        assert tokenizer.decode(answer[:-1]) == build_assistant_message(by_line[row["line"]])
        assert build_user_message(by_line[row["line"]]) in tokenizer.decode(prompt)


def test_prompts_of_one_policy_share_its_tokens(sample_rows: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    by_line = {row.line: row.record for row in load_jsonl(sample_rows).rows}
    rows = [*build(sample_rows, tokenizer).train]
    for name in policy_names():
        policy = policy_text(name).strip()
        prompts = [prompt_of(r) for r in rows if by_line[r["line"]]["input"]["policy_document"] == policy]
        assert len(prompts) > 1
        shared = 0
        while len({prompt[shared] for prompt in prompts}) == 1:
            shared += 1
        text = tokenizer.decode(prompts[0][:shared])
        assert policy in text
        assert text.startswith(f"<|im_start|>system\n{SYSTEM_TEXT}")
        assert all(tokenizer.decode(prompt).count(policy) == 1 for prompt in prompts)


def test_row_formats_give_equal_tokens_labels_and_splits(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [*generate_rows(30, seed=8), record({"note": "<|im_end|> é \u2028", "sum": 10**25})]
    built = [
        build(write(tmp_path / f"{name}.jsonl", [write_as(row) for row in rows]), tokenizer)
        for name, write_as in FORMATS.items()
    ]
    for name, other in zip(FORMATS, built, strict=True):
        assert other.train[:] == built[0].train[:]
        assert other.held_out.remove_columns("file")[:] == built[0].held_out.remove_columns("file")[:]
        assert set(other.held_out["file"]) == {str(tmp_path / f"{name}.jsonl")}
        assert other.report.decisions == built[0].report.decisions


HOSTILE = [
    "<|im_end|>",
    "<|im_end|>\n<|im_start|>assistant\n{}",
    "<|endoftext|>",
    "</think>",
    "\ue0000\ue001 \ue0001\ue001",
    "\\u003c \\ \"quoted\" 'x' {{ 7 * 7 }} {% raw %}",
    "🙂‍↔️ 你好 עברית \u202e \u200b \ufeff \ufffd \uffff",
    "e\u0301 \u212b \u1100\u1161",
    "  two  blanks\t\ttabs \n\n\n lines \r\n",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_answer_decodes_exactly_and_scores_as_correct(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, text: str
) -> None:
    """A completion equal to the training target is correct, also with decomposed accents."""
    rows = [record({"case_id": f"{text}{i}"}, {"decision": f"D{text}", "reason": text + "."}) for i in range(12)]
    built = build(write(tmp_path / "rows.jsonl", rows), tokenizer)
    assert built.report.accounts[0].rejected == 0
    control, encoder = set(tokenizer.get_added_vocab().values()), ChatEncoder.of(tokenizer)
    for row in built.rows:
        expected = unicodedata.normalize("NFC", build_assistant_message(rows[row["line"] - 1]))
        assert tokenizer.decode(answer_ids(row)[:-1]) == expected
        assert sum(token in control for token in answer_ids(row)) == 1
        assert sum(token in control for token in prompt_of(row)) == 5
        said = parse_answer(encoder.decode_answer(answer_ids(row)))
        assert said and said["decision"] == row["decision"]


def test_changed_answer_is_rejected_and_kept(tmp_path: Path, tiny_base: Path) -> None:
    """It is counted, reported as a problem and written byte for byte to rejected.jsonl."""
    lossy = load_tokenizer(tiny_base)
    lossy.backend_tokenizer.normalizer = normalizers.Replace("ß", "ss")
    bad = record({"case_id": "A-50"}, {"reason": "Straße"})
    built = build(write(tmp_path / "rows.jsonl", [*records(10), bad]), lossy)
    assert built.report.accounts[0].rejected == 1
    assert [problem.line for problem in built.report.problems] == [11]
    assert built.rejected == to_line(bad) + b"\n"


def test_changed_answer_is_identified_among_rows_of_one_line(tmp_path: Path, tiny_base: Path) -> None:
    """All elements of an array may be on one line, so the line number does not identify a row."""
    lossy = load_tokenizer(tiny_base)
    lossy.backend_tokenizer.normalizer = normalizers.Replace("ß", "ss")
    bad = to_line(record({"case_id": "A-50"}, {"reason": "Straße"}))
    lines = [*map(to_line, records(6)), bad, *map(to_line, records(5, start=100))]
    (tmp_path / "rows.json").write_bytes(b"[" + b",".join(lines) + b"]")
    built = build(str(tmp_path / "rows.json"), lossy)
    (account,) = built.report.accounts
    assert (account.lines, account.rejected, account.trained + account.held_out) == (12, 1, 11)
    assert built.rejected == bad + b"\n"


def test_group_is_the_text_of_the_group_by_field(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    values = ["return", 3, None, True, {"a": [1]}, "é"]
    rows = [record({"case_id": f"A-{i}", "kind": value}) for i, value in enumerate(values * 4)]
    built = build(write(tmp_path / "rows.jsonl", rows), tokenizer, group_by="kind")
    assert {row["group"] for row in built.rows} == {"" if value is None else str(value) for value in values}
    without = build(write(tmp_path / "rows.jsonl", rows), tokenizer, group_by="no_such_field")
    assert {row["group"] for row in without.rows} == {""}


def test_held_out_rows_keep_every_digit_of_their_record(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [record({"case_id": f"é{i}", "n": 10**30, "x": -0.0}) for i in range(12)]
    built = build(write(tmp_path / "rows.jsonl", rows), tokenizer)
    assert len(built.held_out) > 0
    for row in built.held_out:
        assert json.loads(row["record"]) == rows[row["line"] - 1]


def test_digest_id_ignores_type_case_and_white_space() -> None:
    """Two exports of one shop may differ in these for the same customer."""
    for ids in (
        [
            1001,
            "1001",
            " 1001 ",
            1001.0,
            "1001.0",
            "1001.",
            "1.001E+03",
            "'1001",
            "001001",
            "+1001",
            "１００１",
            "1001\u200b",
        ],
        ["C-7", "c-7", "C\u20117", "\u00a0C-7\u00a0", "C\u22127", "\ufeffc-7"],
        [10**25, str(10**25), 1e25, "1e+25"],
        [["a", 1], ["a", 1]],
        [True, "true"],
    ):
        assert len({digest_id("customer", value) for value in ids}) == 1
    different = [
        "C-7",
        "C-8",
        "C7",
        "1001",
        1001.5,
        "1,001",
        "-1001",
        "1001e999999999",
        "",
        "٣",
        "inf",
        "nan",
        "9" * 5_000,
    ]
    assert len({digest_id("customer", value) for value in different}) == len(different)
    assert digest_id("customer", "C-7") != digest_id("order", "C-7")


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        (["A-1", "A-2"], "a-2", True),
        ([1, 2], [2.0, 3], True),
        ([1, 2], [3], False),
        ("", " ", False),
        ([], [], False),
        ([None, ""], [None], False),
        (0, 0, True),
    ],
)
def test_each_id_of_a_list_is_an_entity_and_an_empty_one_is_none(one: object, other: object, shared: bool) -> None:
    keys = [set(leakage_keys(record({"case_id": i, "order": v}), ("order",))) for i, v in enumerate((one, other))]
    assert bool(keys[0] & keys[1]) == shared


FIELDS = ("customer", "order")


def free_text(question: str) -> dict[str, object]:
    answer = to_line(record()["output"]).decode()
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.mark.parametrize("row_format", [*FORMATS, "free text"])
def test_leakage_keys_of_a_record_match_its_row(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, row_format: str
) -> None:
    """Also if its policy was trimmed: case and entities are the same."""
    policy = "# One\n\nWithin 30 days.\n\n# Two\n\n" + "Never sold things. " * 400
    cases = [record({"case_id": f"é-{i}", "customer": f"C-{i}", "order": 10**25 + i, "x": -0.0}) for i in range(12)]
    rows = [with_policy(case, policy) for case in cases]
    if row_format == "free text":
        written = [free_text(f"Ünd {i}, 1.50?") for i in range(12)]
    else:
        written = [FORMATS[row_format](row) for row in rows]
    path = write(tmp_path / "rows.jsonl", written)
    built = build(path, tokenizer, overlong="trim_policy", max_seq_length=500, entity_fields=FIELDS)
    original = {row.line: row.record for row in load_jsonl(path).rows}
    assert len(built.held_out) > 0
    for row in built.held_out:
        stored = json.loads(row["record"])
        assert (stored != original[row["line"]]) == (row_format != "free text")  # trimmed
        assert leakage_keys(stored, FIELDS) == leakage_keys(original[row["line"]], FIELDS)
        assert len(leakage_keys(stored, FIELDS)) == (1 if row_format == "free text" else 3)


def test_leakage_keys_equal_those_stored_in_existing_adapters() -> None:
    """With a different digest, no row of an existing champion would be recognised as trained on: whoever changes one
    raises ``LEAKAGE_SCHEME``, so that its user is warned."""
    assert LEAKAGE_SCHEME == 2
    row = record({"case_id": "Ä-1.5", "customer": " C-7", "order": None})
    assert leakage_keys(row, FIELDS) == [1928752452259796578, 177752632857757937]
    assert leakage_keys({"messages": [{"role": "user", "content": "May I?"}], "output": row["output"]}, FIELDS) == [
        803711073532393049
    ]
    assert leakage_keys(row | {"input": {"policy_document": "Any."}}, FIELDS) == [15970876379171088184]


def test_leakage_keys_are_keyed_with_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"instruction": "Decide.", "input": {"policy_document": "p", "order_id": "A-1"}, "output": {}}
    monkeypatch.delenv("SFT_FLOW_SECRET", raising=False)
    unkeyed = leakage_keys(record, ["order_id"])
    assert digest_id("order_id", "A-1") in unkeyed
    monkeypatch.setenv("SFT_FLOW_SECRET", "s")
    assert leakage_keys(record, ["order_id"]) == keyed_by_hand(unkeyed, b"s")
    assert not set(unkeyed) & set(leakage_keys(record, ["order_id"]))


def keyed_by_hand(digests: list[int], secret: bytes) -> list[int]:
    codes = (hmac.new(secret, struct.pack("<Q", digest), hashlib.sha256).digest() for digest in digests)
    return [struct.unpack("<Q", code[:8])[0] for code in codes]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(("> 30", "<= 30"), ("≥ 30", "≤ 30"), ("50 €", "50 $"), ("10 %", "10"), ("£5", "¥5"), ("a = b", "a, b")),
        *(("a != b", "a = b"), ("+5", "5"), ("~30", "30"), ("30 °", "30"), ("5′", "5″"), ("5'", "5"), ('5"', "5'")),
        *(
            ("👍", "👎"),
            ("✅", "❌"),
            ("★★★", "★"),
            ("↑ 5", "↓ 5"),
            ("＞ 30", "＜ 30"),
            ("￥5", "￡5"),
            ("3 × 4", "3 ÷ 4"),
        ),
        *(
            ("₹5", "₽5"),
            ("1,5", "-1,5"),
            ("∈ A", "∉ A"),
            ("‰ 5", "% 5"),
            ("5 m²", "5 m³"),
            ("1.5", "15"),
            ("¬ paid", "paid"),
        ),
    ],
)
def test_what_signs_mean_keeps_cases_apart(one: str, other: str) -> None:
    keys = [leakage_keys(record({"note": text}), ()) for text in (one, other, f" {one}. ")]
    assert keys[0] != keys[1]
    assert keys[0] == keys[2]


def test_entity_fields_and_group_may_be_paths(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [record({"case_id": f"A-{i}", "order": {"id": i // 2, "kind": f"k{i}"}}) for i in range(40)]
    built = build(write(tmp_path / "rows.jsonl", rows), tokenizer, entity_fields=("order.id",), group_by="order.kind")
    assert not built.report.failures
    assert not built.finding("fields that no row has")
    trained, held_out = built.lines
    assert {(line + 1) // 2 for line in trained}.isdisjoint((line + 1) // 2 for line in held_out)
    assert {row["group"] for row in built.rows} == {f"k{i}" for i in range(40)}


def test_field_whose_name_has_a_dot_comes_before_a_path() -> None:
    by_name, by_path = {"order.id": 7}, {"order": {"id": 7}}
    assert field_value(by_name | {"order": {"id": 8}}, "order.id") == field_value(by_path, "order.id") == 7
    assert field_value({"order": "text"}, "order.id") is None
    assert field_value({"order": {"items": {"id": 3}}}, "order.items.id") == 3


def test_long_answer_is_overlong_and_not_decoded(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding takes memory for each token."""
    decoded: list[int] = []

    def watched(self: ChatEncoder, answers: list[list[int]]) -> list[str]:
        decoded.extend(map(len, answers))
        return decode(self, answers)

    decode = ChatEncoder.decode_answers
    monkeypatch.setattr(ChatEncoder, "decode_answers", watched)
    long = record(output={"decision": "eligible", "conditions": ["12" * 100_000]})
    built = build(write(tmp_path / "rows.jsonl", [*records(5), long]), tokenizer, max_seq_length=500)
    assert built.report.accounts[0].overlong == 1
    assert max(decoded) < 500
