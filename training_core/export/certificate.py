"""The proof that what is served decides as the registered adapter was judged, or what keeps it from that."""

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError

from training_core.config import RunConfig, SettingsError
from training_core.escaping import on_one_line
from training_core.evaluation.scores import NO_DECISION, Prediction
from training_core.evaluation.text_scores import AnswerJudge
from training_core.export.agreement import Agreement, compare_decisions
from training_core.export.endpoint import Ask, Reply
from training_core.export.findings import Asked, Finding, Probe, Row, probes, system_texts
from training_core.folders import complete_file
from training_core.grid import Grid
from training_core.prompts.chat_encoding import ChatEncoder
from training_core.rows.strict_json import Record

AT_ONCE = 4  # questions to an endpoint
ASKED_TWICE = 8
_PROBE_TOKENS = 96
FEW_ROWS = 100  # below it one other decision is more than the 1% that may differ
_MOST_SHOWN = 3

HOLDS, DIFFERS, UNKNOWN = "holds", "differs", "not shown"


@dataclass(frozen=True)
class Check:
    """One comparison of what is served with what was judged; ``state`` is holds, differs, or not shown."""

    name: str
    judged: str
    served: str
    state: str


@dataclass(frozen=True)
class Certificate:
    """Checks, defects with their fixes, and what they are about: the version, the place, the rows and the request."""

    model: str
    place: str
    date: str
    rows: int
    request: Mapping[str, Any]
    checks: Sequence[Check]
    findings: Sequence[Finding]
    notes: Sequence[str]
    differing: Sequence[Mapping[str, str]]

    @property
    def certified(self) -> bool:
        return not self.findings and all(check.state != DIFFERS for check in self.checks)

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.certified:
            return f"Certified: {self.place} decides as {self.model} was judged, on {self.rows} rows{self.few}"
        why = self.findings[0].sentence if self.findings else "decisions differ, see the checks"
        return f"Not certified: {why}"

    @property
    def few(self) -> str:
        """What so few rows do not show; empty where they are enough."""
        return f" only: fewer than {FEW_ROWS} show gross defects alone" if 0 < self.rows < FEW_ROWS else ""

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with complete_file(path) as draft:
            values = {"certified": self.certified, "verdict": self.verdict} | asdict(self)
            draft.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def grid(self) -> Grid:
        rows = [(check.name, check.judged, check.served, check.state) for check in self.checks]
        size = f"{self.rows} rows{self.few}"
        title = f"{self.model} at {on_one_line(self.place, 200)}, {size}"
        return Grid(title, ("", "judged", "served", ""), rows, " ".join(self.notes))


def ask_all(ask: Ask, rows: Sequence[Row], limit: int, encoder: ChatEncoder, at_once: int = AT_ONCE) -> Asked:
    """Every row asked once, some a second time without a limit, ``system_texts`` counted, and ``probes`` asked."""
    with ThreadPoolExecutor(at_once) as pool:
        replies = list(pool.map(lambda row: ask(row.messages, limit), rows))
        answered = [_answered(row, reply, encoder) for row, reply in zip(rows, replies, strict=True)]
        # The longest answers: a server's own limit cuts them first. One that did not end might not end at all.
        longest = sorted(range(len(rows)), key=lambda place: -len(rows[place].judged_tokens))[:ASKED_TWICE]
        ended = {place: replies[place].finish_reason != "length" for place in longest}
        bare = pool.map(lambda place: ask(rows[place].messages, None if ended[place] else limit), longest)
        for place, reply in zip(longest, bare, strict=True):
            answered[place] = replace(answered[place], bare=reply)
        sizes = {
            name: (len(encoder.encode_prompt(list(question))), ask(question, 1).prompt_tokens)  # type: ignore[arg-type]
            for name, question in system_texts().items()
        }
    return Asked(answered, limit, sizes, list(_probed(ask, limit, encoder)))


def _probed(ask: Ask, limit: int, encoder: ChatEncoder) -> Iterator[Probe]:
    for question in probes():
        with contextlib.suppress(TemplateError, SettingsError):  # a template may want a system text
            prompt = encoder.encode_prompt(list(question))  # type: ignore[arg-type]
            yield Probe(prompt, ask(question, min(limit, _PROBE_TOKENS)))


def _answered(row: Row, reply: Reply, encoder: ChatEncoder) -> Row:
    """The row with its reply; one that is held to the form as in the evaluation is compared with that answer."""
    if row.held is None or reply.text != row.held:
        return replace(row, reply=reply)
    return replace(row, reply=reply, judged=row.held, judged_tokens=encoder.encode_answer(row.held), ended=True)


def judge_replies(
    judged: Sequence[Prediction], records: Sequence[Record], rows: Sequence[Row], judge: AnswerJudge
) -> list[Prediction]:
    """The replies, read as the judged answers were."""
    found = []
    for prediction, record, row in zip(judged, records, rows, strict=True):
        read = judge.judge(record, row.reply.text, f"{prediction.file}:{prediction.line}")
        decision = NO_DECISION if read.decision is None else read.decision
        found.append(
            replace(
                prediction,
                answer=row.reply.text,
                decision=decision,
                parsed=read.parsed,
                usable=read.usable,
                text_scores=read.text_scores,
                problems=read.problems,
            )
        )
    return found


def settle(
    judged: Sequence[Prediction], served: Sequence[Prediction], ties: Collection[int], config: RunConfig
) -> Agreement:
    """The agreement of the decisions; those of rows in ``ties`` count as equal, since rounding decides them."""
    settled = [own if row in ties else other for row, (own, other) in enumerate(zip(judged, served, strict=True))]
    return compare_decisions(judged, settled, config)


def checks_of(asked: Asked, agreement: Agreement, ties: int) -> list[Check]:
    """What is compared; the decisions of so many rows are ties."""
    return [
        _prompt_tokens(asked),
        _stops(asked),
        *_decisions(agreement, ties),
        _cut(asked),
        _determinism(asked),
        _same_texts(asked),
        _latency(asked),
    ]


def _prompt_tokens(asked: Asked) -> Check:
    counted, ours = asked.differences, [len(row.prompt) for row in asked.rows]
    if not counted:
        return Check("prompt tokens", f"{min(ours)}–{max(ours)}", "usage.prompt_tokens is missing", UNKNOWN)
    equal = counted.count(0)
    theirs = f"equal in {equal} of {len(ours)} rows" + (
        "" if equal == len(ours) else f", {min(counted):+} to {max(counted):+}"
    )
    return Check("prompt tokens", f"{min(ours)}–{max(ours)}", theirs, HOLDS if equal == len(counted) else DIFFERS)


def _stops(asked: Asked) -> Check:
    ended, stopped = sum(row.ended for row in asked.rows), sum(row.reply.finish_reason == "stop" for row in asked.rows)
    rows = len(asked.rows)
    return Check(
        "ends its turn", f"{ended} of {rows}", f"{stopped} of {rows}", HOLDS if stopped >= 0.99 * ended else DIFFERS
    )


def _decisions(agreement: Agreement, ties: int) -> list[Check]:
    rows, equal_here = agreement.rows, agreement.equal - ties
    tied = f", {ties} at a tie" if ties else ""
    equal, approvals = (HOLDS if holds else DIFFERS for holds in (agreement.decides_alike, agreement.approves_no_more))
    before, after = f"{agreement.judged_false_approvals:.1%}", f"{agreement.false_approvals:.1%}"
    return [
        Check("decisions", f"{rows} rows", f"{equal_here} equal ({equal_here / rows:.1%}){tied}", equal),
        Check("false approvals", before, after, approvals),
        Check("usable answers", f"{agreement.judged_usable:.1%}", f"{agreement.usable:.1%}", HOLDS),
    ]


def _cut(asked: Asked) -> Check:
    before = sum(not row.ended for row in asked.rows)
    after = sum(row.reply.finish_reason == "length" for row in asked.rows)
    lengths = [row.reply.completion_tokens for row in asked.rows if row.reply.completion_tokens]
    longest = f", the longest has {max(lengths)}" if lengths else ""
    return Check(
        f"cut answers (limit {asked.limit})", str(before), f"{after}{longest}", HOLDS if after <= before else DIFFERS
    )


def _determinism(asked: Asked) -> Check:
    twice = [row for row in asked.rows if row.bare]
    same = sum(row.bare is not None and row.bare.text == row.reply.text for row in twice)
    return Check("asked twice", f"{len(twice)} rows", f"{same} the same", HOLDS if same == len(twice) else UNKNOWN)


def _same_texts(asked: Asked) -> Check:
    same = sum(row.same for row in asked.rows)
    return Check(
        "the same words", f"{len(asked.rows)} rows", f"{same} the same", HOLDS if same == len(asked.rows) else UNKNOWN
    )


def _latency(asked: Asked) -> Check:
    seconds = [row.reply.seconds for row in asked.rows]
    return Check(
        "seconds per answer", "", f"median {np.median(seconds):.2f}, p95 {np.quantile(seconds, 0.95):.2f}", HOLDS
    )


def differing_rows(
    judged: Sequence[Prediction], served: Sequence[Prediction], ties: Collection[int]
) -> list[dict[str, str]]:
    """The first rows that are decided otherwise, for people; those at a tie come last."""
    pairs = enumerate(zip(judged, served, strict=True))
    differing = [(row in ties, one, other) for row, (one, other) in pairs if one.decision != other.decision]
    differing.sort(key=lambda found: found[0])
    return [
        {
            "row": f"{one.file}:{one.line}{' (a tie)' if tie else ''}",
            "judged": one.decision,
            "served": other.decision,
            "answer": on_one_line(other.answer, 400),
        }
        for tie, one, other in differing[:_MOST_SHOWN]
    ]
