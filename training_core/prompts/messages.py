"""What a row says to the model and what the model is to answer: the words of the prompt have no other home."""

import json

from training_core.prompts.chat_encoding import Message
from training_core.rows.strict_json import Record

SYSTEM_TEXT = "You decide customer cases strictly by the policy document. Answer with one JSON object and nothing else."


def build_user_message(record: Record) -> str:
    """Policy first, then what differs from row to row: rows of one policy share a long run of first tokens."""
    return (
        f"## Policy document\n\n{record['input']['policy_document']}\n\n"
        f"## Instruction\n\n{record['instruction']}\n\n"
        f"## Case\n\n{json.dumps(case_of(record), ensure_ascii=False)}"
    )


def case_of(record: Record) -> Record:
    """The fields of a record's case without its policy."""
    return {name: value for name, value in record["input"].items() if name != "policy_document"}


def build_assistant_message(record: Record) -> str:
    """The expected answer: the row's output as one line of JSON."""
    return json.dumps(record["output"], ensure_ascii=False)


def format_as_chat(record: Record) -> list[Message]:
    """A record as chat messages, the last of which is the answer; one still without output lacks it and nothing else.

    A case becomes a system, a user and an assistant message; a conversation keeps its own messages.
    """
    messages = record.get("messages") or [
        {"role": "system", "content": SYSTEM_TEXT},
        {"role": "user", "content": build_user_message(record)},
    ]
    if "output" not in record:
        return list(messages)
    return [*messages, {"role": "assistant", "content": build_assistant_message(record)}]
