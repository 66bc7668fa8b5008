"""Rows as they were asked of what is served, and the defects that are found, each with its fix."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from training_core.export.endpoint import Messages, Reply

MOST = 0.5  # share of the rows that shows a defect of the server, not of a row
SAMPLING = "sampling on"
DECODING_FIX = "serve it with the generation_config.json of the export, or let every request say so (--request)"


@dataclass(frozen=True)
class Finding:
    """A defect by name, what shows it, and the fix."""

    defect: str
    sentence: str
    fix: str


@dataclass(frozen=True)
class Row:
    """A held-out row as it was asked: our prompt and the version's free answer, both in tokens, and what came back.

    ``held``: the judged answer where a grammar changed it; ``None`` where the free answer was judged.
    ``bare`` is the reply to the same messages without a limit of the answer, for some rows.
    """

    messages: Messages
    prompt: Sequence[int]
    judged: str
    judged_tokens: Sequence[int]
    ended: bool
    reply: Reply
    bare: Reply | None = None
    held: str | None = None

    @property
    def same(self) -> bool:
        return self.reply.text == self.judged and not self.reply.reasoning


@dataclass(frozen=True)
class Probe:
    """A question that is no held-out row, in tokens, and the reply: it is replayed and never compared."""

    prompt: Sequence[int]
    reply: Reply


@dataclass(frozen=True)
class Asked:
    """All rows that were asked, the longest answer that we asked for, the prompt tokens of ``system_texts()``, and the
    replies to ``probes()``."""

    rows: Sequence[Row]
    limit: int
    texts: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    probes: Sequence[Probe] = ()

    @property
    def differences(self) -> list[int]:
        """Prompt tokens there minus ours, of the rows of which the runtime says how many it had."""
        return [row.reply.prompt_tokens - len(row.prompt) for row in self.rows if row.reply.prompt_tokens is not None]


def system_texts() -> dict[str, Messages]:
    """Two questions of which the second has a longer system text: a server that replaces it takes the same tokens."""
    question = {"role": "user", "content": "Which policy counts?"}
    short, long = "Answer by the policy.", " ".join(["Answer by the policy."] * 12)
    return {name: [{"role": "system", "content": text}, question] for name, text in (("short", short), ("long", long))}


def probes() -> list[Messages]:
    """Questions far from the rows: an adapter is less certain there, and so a penalty or a missing part of the adapter
    changes words although it changes no decision of these rows."""
    questions = (
        "List twenty animals, one on each line.",
        "Write the word policy twenty times.",
        "Explain in five sentences how a bicycle works.",
        "Tell a short story about a lighthouse and its keeper.",
    )
    return [[{"role": "user", "content": question}] for question in questions]
