"""A registered version against what is served: the served answers are asked for and compared with the judged ones."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peft import PeftModel

from tasks.judged_answers import Judged
from tasks.versions import tag_version
from training_core.config import RunConfig
from training_core.evaluation.scores import Prediction
from training_core.evaluation.text_scores import AnswerJudge
from training_core.export.answer_defects import answer_defects, held_finding
from training_core.export.certificate import (
    AT_ONCE,
    Certificate,
    ask_all,
    checks_of,
    differing_rows,
    judge_replies,
    settle,
)
from training_core.export.compared_weights import DAMAGED, Registered
from training_core.export.decoding import ROUNDING, TIE, Served
from training_core.export.endpoint import Ask, Reply
from training_core.export.findings import SAMPLING, Asked, Finding, Probe, Row
from training_core.export.folder_runtime import FolderRuntime
from training_core.export.inspection import inspect_folder
from training_core.export.prompt_defects import prompt_defect, prompt_findings
from training_core.export.replay import Explanation, explain, load_unquantised, own_gaps
from training_core.export.replay_defects import explained_finding, probe_finding
from training_core.model_setup import load_tokenizer
from training_core.prompts.chat_encoding import ChatEncoder
from training_core.prompts.messages import format_as_chat
from training_core.training.gpu_lock import sole_use_of_gpu

CERTIFICATE_TAG = "sft_flow.certificate"
_REPLAYED = 6
_MOST_TIED = 0.05  # share of the rows
# What requests hold answers to a form with: OpenAI's name, those of vLLM, and llama.cpp's.
_HOLDING = {
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_choice",
    "guided_regex",
    "guided_grammar",
    "grammar",
}
_NOT_ASKED = Reply("", "", None, None)
_NOTES = {
    "judged": "by rounding",
    "unquantised": "they are those of the adapter on the base without quantisation; it was judged in four bits",
    "quantised": "by no more than another quantisation does",
}


@sole_use_of_gpu("sft-flow certify")
def certify_endpoint(judged: Judged, ask: Ask, place: str, request: dict[str, Any]) -> Certificate:
    """Ask an endpoint and compare. Where requests name a form, the answers to other questions would be held to it too:
    they show nothing."""
    asked = _ask(judged, ask, AT_ONCE)
    return _issue(judged, replace(asked, probes=()) if _HOLDING & request.keys() else asked, place, request, [])


@sole_use_of_gpu("sft-flow certify")
def certify_folder(judged: Judged, folder: Path) -> Certificate:
    """Inspect an exported folder, run it, and compare."""
    registered, base = judged.registered, Path(judged.registered.base)
    known = Registered(
        Path(registered.adapter.path), base, judged.config.model_name, registered.run.base_commit, judged.limit
    )
    tokenizer = load_tokenizer(base)
    findings = inspect_folder(folder, known, ChatEncoder.of(tokenizer).end_of_turn)
    if any(one.defect == DAMAGED for one in findings):
        return Certificate(judged.name, str(folder), _now(), 0, {}, [], findings, [], [])
    runtime = FolderRuntime.load(folder, base)
    asked = _ask(judged, runtime.ask, 1)
    findings += prompt_findings(asked, [runtime.prompt(row.messages) for row in asked.rows], tokenizer)
    return _issue(judged, asked, str(folder), {}, findings)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _ask(judged: Judged, ask: Ask, at_once: int) -> Asked:
    encoder = ChatEncoder.of(load_tokenizer(Path(judged.registered.base)))
    rows = []
    for record, one, free in zip(judged.rows["record"][:], judged.predictions, judged.free, strict=True):
        messages = format_as_chat(json.loads(record))[:-1]
        tokens, held = encoder.encode_answer(free), None if one.answer == free else one.answer
        ended, prompt = len(tokens) <= judged.limit, encoder.encode_prompt(messages)
        rows.append(Row(messages, prompt, free, tokens, ended, _NOT_ASKED, held=held))
    return ask_all(ask, rows, judged.limit, encoder, at_once)


def _issue(
    judged: Judged, asked: Asked, place: str, request: dict[str, Any], findings: Sequence[Finding]
) -> Certificate:
    records = [json.loads(record) for record in judged.rows["record"][:]]
    served = judge_replies(judged.predictions, records, asked.rows, AnswerJudge.of(judged.config, frozenset()))
    ties = _ties(judged, asked, served)
    agreement = settle(judged.predictions, served, ties, judged.config)
    tokenizer = load_tokenizer(Path(judged.registered.base))
    seen = [*findings, *prompt_defect(asked, tokenizer), *answer_defects(asked, tokenizer)]
    found, notes = _diagnosed(judged, asked, seen, not agreement.problems)
    return Certificate(
        model=judged.name,
        place=place,
        date=_now(),
        rows=len(asked.rows),
        request=request,
        checks=checks_of(asked, agreement, len(ties)),
        findings=found,
        notes=notes,
        differing=differing_rows(judged.predictions, served, ties),
    )


def _diagnosed(judged: Judged, asked: Asked, found: Sequence[Finding], agreed: bool) -> tuple[list[Finding], list[str]]:
    """The defects, one of each kind; where answers differ and nothing says why, they are replayed."""
    if [one.defect for one in found] == [SAMPLING] and _is_tie(judged, asked):
        found = []
    # Where a server holds answers to the form, one that its grammar changed is the likeliest of no weights.
    holds = any(row.reply.text == row.held for row in asked.rows)
    differing = [row for row in asked.rows if not row.same and not (holds and row.held is not None)]
    if found:
        return list({one.defect: one for one in reversed(found)}.values())[::-1], []
    explanation = _replayed(judged, differing) if differing else None
    finding = explained_finding(explanation, agreed) if explanation else None
    finding = finding or held_finding(asked, agreed)
    if finding := finding or (None if holds else _probed(judged, asked)):
        return [finding], []
    notes = f"Answers to {len(differing)} rows differ in words: {_NOTES[explanation.kind]}." if explanation else ""
    return [], [notes] if notes else []


def _probed(judged: Judged, asked: Asked) -> Finding | None:
    """The defect that shows in answers to questions outside the rows, where all rows are decided as judged."""
    loaded = judged.load()
    encoder = ChatEncoder.of(loaded.tokenizer)
    answers = [_served(probe, encoder) for probe in asked.probes if _is_exact(probe, encoder)]
    return probe_finding(explain(loaded.model, _unquantised(judged), answers)) if answers else None


def _is_exact(probe: Probe, encoder: ChatEncoder) -> bool:
    """Whether the text is encoded by as many tokens as it was generated by: broken characters are not."""
    found, counted = len(encoder.encode_answer(probe.reply.text)), probe.reply.completion_tokens
    return bool(probe.reply.text) and "\ufffd" not in probe.reply.text and counted in (None, found, found - 1)


def _ties(judged: Judged, asked: Asked, served: Sequence[Prediction]) -> frozenset[int]:
    """The rows whose decision is another one because two are about as likely to the judged adapter, and a server in
    another number format or with other batches rounds otherwise; none where they are many."""
    pairs = zip(judged.predictions, served, strict=True)
    rows = [row for row, (own, other) in enumerate(pairs) if own.decision != other.decision]
    rows = [row for row in rows if asked.rows[row].held is None and asked.rows[row].reply.text]
    if not rows or len(rows) > _MOST_TIED * len(asked.rows):
        return frozenset()
    gaps = _gaps(judged, [asked.rows[row] for row in rows])
    return frozenset(row for row, gap in zip(rows, gaps, strict=True) if gap < ROUNDING)


def _gaps(judged: Judged, rows: Sequence[Row]) -> list[float]:
    loaded = judged.load()
    encoder = ChatEncoder.of(loaded.tokenizer)
    return own_gaps(loaded.model, _unquantised(judged), [_served(row, encoder) for row in rows])


def _is_tie(judged: Judged, asked: Asked) -> bool:
    """Whether rows with two answers have them because two tokens are equally likely: batches round otherwise."""
    rows = [row for row in asked.rows if row.bare and row.bare.text != row.reply.text]
    both = [replace(row, reply=reply) for row in rows for reply in (row.reply, row.bare) if reply and reply.text]
    return max(_gaps(judged, both)) < TIE


def _replayed(judged: Judged, rows: Sequence[Row]) -> Explanation:
    loaded = judged.load()
    encoder = ChatEncoder.of(loaded.tokenizer)
    answers = [_served(row, encoder) for row in rows if row.reply.text][:_REPLAYED]
    if not answers:
        return Explanation("far", "the answers are empty")
    return explain(loaded.model, _unquantised(judged), answers, _other_prompts(answers, encoder))


def _unquantised(judged: Judged) -> Callable[[], PeftModel] | None:
    """Loads the adapter on the base as released, where it was judged in four bits."""
    base, adapter = Path(judged.registered.base), Path(judged.registered.adapter.path)
    return None if judged.config.quantisation == "none" else lambda: load_unquantised(base, adapter)


def _served(row: Row | Probe, encoder: ChatEncoder) -> Served:
    tokens = encoder.encode_answer(row.reply.text)
    return Served(list(row.prompt), tokens if row.reply.finish_reason == "stop" else tokens[:-1])


def _other_prompts(answers: Sequence[Served], encoder: ChatEncoder) -> list[tuple[str, list[Served]]]:
    """Prompts of as many tokens, whose turns end with another control token."""
    end, found = encoder.end_of_turn, []
    for text, token in encoder.tokenizer.get_added_vocab().items():
        if token != end and text.startswith("<|"):
            swapped = [Served([token if one == end else one for one in a.prompt], a.tokens) for a in answers]
            found.append((f"a template that ends turns with {text}", swapped))
    return found[:4]


def record_certificate(config: RunConfig, certificate: Certificate) -> None:
    """Let the version say what was certified last."""
    number = certificate.model.rpartition("/")[2]
    text = f"{certificate.date}: {certificate.verdict}"[:1000]
    tag_version(config, number, {CERTIFICATE_TAG: text})
