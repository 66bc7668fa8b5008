"""The prompt of a row and its expected answer; all words of the prompt are defined here."""

import json

from training_core.prompts.chat_encoding import Message
from training_core.rows.strict_json import Record

SYSTEM_TEXT = "You decide customer cases strictly by the policy document. Answer with one JSON object and nothing else."


def build_user_message(record: Record) -> str:
    """The policy first, then what differs between rows, so that rows of one policy have a long common prefix."""
    return (
        f"## Policy document\n\n{record['input']['policy_document']}\n\n"
        f"## Instruction\n\n{record['instruction']}\n\n"
        f"## Case\n\n{json.dumps(case_of(record), ensure_ascii=False)}"
    )


def case_of(record: Record) -> Record:
    """The fields of a record's case, without the policy."""
    return {name: value for name, value in record["input"].items() if name != "policy_document"}


def build_assistant_message(record: Record) -> str:
    """The expected answer: the row's output as one line of JSON."""
    return json.dumps(record["output"], ensure_ascii=False)


def format_as_chat(record: Record) -> list[Message]:
    """A record as chat messages, the last of which is the answer; a record without output gives the same prompt.

    A case becomes a system, a user and an assistant message; a conversation keeps its own messages.
    """
    messages = record.get("messages") or [
        {"role": "system", "content": SYSTEM_TEXT},
        {"role": "user", "content": build_user_message(record)},
    ]
    if "output" not in record:
        return list(messages)
    return [*messages, {"role": "assistant", "content": build_assistant_message(record)}]
