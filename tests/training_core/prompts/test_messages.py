"""Prompts begin with the policy, and are the same in training and serving."""

import json

import pytest
from row_samples import record, with_policy

from training_core.prompts.messages import SYSTEM_TEXT, build_assistant_message, build_user_message, format_as_chat


def test_policy_is_in_the_prompt_once_and_first() -> None:
    row = record({"case_id": "A-77"})
    system, user, assistant = format_as_chat(row)
    assert (system["role"], user["role"], assistant["role"]) == ("system", "user", "assistant")
    assert system["content"] == SYSTEM_TEXT
    assert user["content"].count("Within 30 days.") == 1
    assert user["content"].index("Within 30 days.") < user["content"].index("Decide this case.")
    assert user["content"].index("Within 30 days.") < user["content"].index("A-77")
    assert "policy_document" not in user["content"]


def test_policy_of_any_length_is_in_the_prompt_completely() -> None:
    policy = "\n".join(f"Section {i}: within {i} days." for i in range(3000))
    assert policy in build_user_message(with_policy(record(), policy))


def test_answer_is_one_line_of_json_in_order() -> None:
    row = record(output={"decision": "é\n\u2028", "extra": [1, {"b": 2, "a": None}]})
    text = build_assistant_message(row)
    assert "\n" not in text
    assert json.loads(text) == row["output"]
    assert list(json.loads(text)) == list(row["output"])


CONVERSATION = {"messages": [{"role": "user", "content": "May I?"}], "output": record()["output"]}


@pytest.mark.parametrize("row", [record(), CONVERSATION], ids=["case", "conversation"])
def test_prompt_is_the_same_with_and_without_output(row: dict[str, object]) -> None:
    """The served adapter gets cases without output; training gets them with it."""
    asked = {name: value for name, value in row.items() if name != "output"}
    assert format_as_chat(asked) == format_as_chat(row)[:-1]


@pytest.mark.parametrize("row", [record(), CONVERSATION], ids=["case", "conversation"])
def test_format_as_chat_does_not_change_the_row(row: dict[str, object]) -> None:
    before = json.dumps(row)
    format_as_chat(row).append({"role": "user", "content": "more"})
    assert json.dumps(row) == before


def test_conversation_keeps_its_messages_without_a_system_text() -> None:
    assert format_as_chat(CONVERSATION)[:-1] == CONVERSATION["messages"]
