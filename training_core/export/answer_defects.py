"""Defects that answers show by their ends, or when a row is asked twice."""

import json
from collections import Counter
from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from training_core.export.endpoint import Reply
from training_core.export.findings import DECODING_FIX, MOST, SAMPLING, Asked, Finding, Row
from training_core.prompts.chat_encoding import ChatEncoder


def answer_defects(asked: Asked, tokenizer: PreTrainedTokenizerFast) -> list[Finding]:
    """Answers that run on, are cut, or differ when asked again."""
    return [*_run_on(asked, tokenizer), *_cut(asked), *_sampling(asked)]


def _run_on(asked: Asked, tokenizer: PreTrainedTokenizerFast) -> list[Finding]:
    ends = tokenizer.decode([ChatEncoder.of(tokenizer).end_of_turn])
    rows = [row for row in asked.rows if row.ended]
    beyond = [row for row in rows if ends in row.reply.text or _goes_on(row)]
    if len(beyond) < max(1.0, MOST * len(rows)):
        return []
    extra = [(row.reply.completion_tokens or 0) - len(row.judged_tokens) for row in beyond]
    sentence = (
        f"The end of turn is another one: {len(beyond)} of {len(rows)} answers run on past our {ends}, "
        f"by up to {max(extra)} tokens; the server does not stop there"
    )
    return [
        Finding("swapped end of turn", sentence, f"name {ends} as eos_token_id in the served generation_config.json")
    ]


def _goes_on(row: Row) -> bool:
    """An answer, then more: as text, or as tokens that no text shows."""
    text, tokens = row.reply.text, row.reply.completion_tokens or 0
    if text.strip() == row.judged.strip():
        return tokens > len(row.judged_tokens) + 2
    return text.startswith(row.judged) or bool(_after_object(text))


def _after_object(text: str) -> str:
    """What follows the JSON object that a text begins with; nothing where it begins with none."""
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return ""
    return text[end:].strip()


def _cut(asked: Asked) -> list[Finding]:
    cut = [row for row in asked.rows if row.ended and _is_cut(row.reply, row.judged, asked.limit)]
    by_default = [row for row in asked.rows if row.bare and _is_cut(row.bare, row.reply.text, asked.limit)]
    if not cut and not by_default:
        return []
    replies = [row.reply for row in cut] or [row.bare for row in by_default if row.bare]
    lengths = Counter(reply.completion_tokens for reply in replies)
    most, count = lengths.most_common(1)[0]
    unless = "" if cut else " unless the request says max_tokens"
    if most is None or count < MOST * len(replies):
        return [_early(cut)] if cut else []
    of = f"{len(replies)} of {len(asked.rows) if cut else sum(row.bare is not None for row in asked.rows)}"
    sentence = (
        f"Answers are cut at {most} tokens{unless}: {of} end there without an end of turn; {asked.limit} were judged"
    )
    fix = f"let the server give {asked.limit} tokens (max_new_tokens, max_tokens, num_predict)"
    return [Finding("answers cut", sentence, fix)]


def _is_cut(reply: Reply, whole: str, limit: int) -> bool:
    shorter = len(reply.text) < len(whole) and whole.startswith(reply.text.rstrip("\ufffd"))
    return shorter or (reply.finish_reason == "length" and (reply.completion_tokens or limit) < limit)


def _early(cut: Sequence[Row]) -> Finding:
    following = Counter(row.judged[len(row.reply.text) :][:8] for row in cut)
    text, count = following.most_common(1)[0]
    sentence = (
        f"{len(cut)} answers stop early, {count} of them before {text!r}: the server stops at another token or text"
    )
    return Finding("stops early", sentence, "take away its stop words and end-of-turn tokens but ours")


def _sampling(asked: Asked) -> list[Finding]:
    twice = [row for row in asked.rows if row.bare and not _is_cut(row.bare, row.reply.text, asked.limit)]
    other = [row for row in twice if row.bare and row.bare.text != row.reply.text]
    if not other:
        return []
    sentence = f"Sampling is on: asked twice, {len(other)} of {len(twice)} rows got two answers; it was judged greedily"
    return [Finding(SAMPLING, sentence, f"temperature 0: {DECODING_FIX}")]


def held_finding(asked: Asked, agreed: bool) -> Finding | None:
    """Decisions that differ where the judged answer was held to the form, and what is served wrote on freely."""
    rows = [row for row in asked.rows if row.held is not None and row.reply.text != row.held]
    if agreed or not rows:
        return None
    sentence = (
        f"Answers are not held to the form: the grammar changed {len(rows)} of {len(asked.rows)} judged answers, "
        "and what is served gave others there"
    )
    fix = "let requests name the form, answer_schema.json of the export, as response_format (--request)"
    return Finding("answers not held", sentence, fix)
