"""Trims the policy of an overlong row by whole sections; case and answer are unchanged."""

import re
from itertools import pairwise
from typing import NamedTuple

from training_core.prompts.chat_encoding import ChatEncoder, TokenIds
from training_core.prompts.messages import format_as_chat
from training_core.rows.strict_json import Record

# Sections begin with a Markdown heading, a numbered one, or a line in capitals; without any, paragraphs are sections.
_HEADING = re.compile(r"^(?=#{1,6} |\d+(?:\.\d+)*[.)] |[A-Z][A-Z0-9 ,&'()/:-]{3,}$)", re.MULTILINE)
_PARAGRAPH = re.compile(r"(?<=\n\n)(?=\S)")


class Trimmed(NamedTuple):
    """A record with a trimmed policy, its prompt, and the number of sections kept: ``"3 of 9"``."""

    record: Record
    prompt: TokenIds
    kept: str


def trim_policy(record: Record, encoder: ChatEncoder, room: int) -> Trimmed | None:
    """The record with the sections of its policy that fit in a prompt of ``room`` tokens, added from the top.

    A section that does not fit is left out, and shorter ones after it may still fit. ``None`` if the record has no
    policy or no section fits.
    """
    if "messages" in record:
        return None
    sections = split_sections(record["input"]["policy_document"])
    kept: list[str] = []
    fitting = None
    for section in sections:
        candidate = _with_policy(record, "".join([*kept, section]))
        (prompt,) = encoder.encode_prompts([format_as_chat(candidate)[:-1]])
        if len(prompt) <= room:
            kept.append(section)
            fitting = Trimmed(candidate, prompt, f"{len(kept)} of {len(sections)}")
    return fitting


def split_sections(policy: str) -> list[str]:
    r"""The sections of a policy, which concatenate to it: ``"# A\na\n# B\nb"`` → ``["# A\na\n", "# B\nb"]``."""
    starts = [found.start() for found in _HEADING.finditer(policy)]
    if len(starts) < 2:
        starts = [found.start() for found in _PARAGRAPH.finditer(policy)]
    cuts = sorted({0, *starts, len(policy)})
    return [policy[start:end] for start, end in pairwise(cuts)]


def _with_policy(record: Record, policy: str) -> Record:
    return record | {"input": record["input"] | {"policy_document": policy.strip()}}
