"""Which defect the answers of an endpoint show, in a sentence, and how to mend it."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jinja2 import Environment, meta
from transformers import PreTrainedTokenizerFast

from training_core.export.endpoint import Messages, Reply
from training_core.export.replay import Explanation
from training_core.prompts.chat_encoding import ChatEncoder

_THOUGHTS = ("<think>", "</think>")
_LITERALS = ("<think>\n", "<think>", "<think>\n\n</think>\n\n", "<think></think>")
_GIVEN = ("messages", "tools", "add_generation_prompt", "documents", "chat_template", "bos_token", "eos_token")
_MOST = 0.5  # share of the rows that shows a defect of the server, not of a row

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
class Asked:
    """All rows that were asked, the longest answer that we asked for, and the prompt tokens of ``system_texts()``."""

    rows: Sequence[Row]
    limit: int
    texts: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)

    @property
    def differences(self) -> list[int]:
        """Prompt tokens there minus ours, of the rows of which the runtime says how many it had."""
        return [row.reply.prompt_tokens - len(row.prompt) for row in self.rows if row.reply.prompt_tokens is not None]


def system_texts() -> dict[str, Messages]:
    """Two questions of which the second has a longer system text: a server that replaces it takes the same tokens."""
    question = {"role": "user", "content": "Which policy counts?"}
    short, long = "Answer by the policy.", " ".join(["Answer by the policy."] * 12)
    return {name: [{"role": "system", "content": text}, question] for name, text in (("short", short), ("long", long))}


def find_defects(asked: Asked, tokenizer: PreTrainedTokenizerFast) -> list[Finding]:
    """What prompt tokens, ends and repeated answers show, without a model."""
    found = [*_thinking(asked, tokenizer), *_system(asked), *_prompt(asked, tokenizer)][:1]
    return [*found, *_run_on(asked, tokenizer), *_cut(asked), *_sampling(asked)]


# Prompts


def _thinking(asked: Asked, tokenizer: PreTrainedTokenizerFast) -> list[Finding]:
    thoughts = sum(bool(r.reply.reasoning) or any(t in r.reply.text for t in _THOUGHTS) for r in asked.rows)
    difference = _only(asked.differences)
    ways = [name for name, size in thinking_sizes(tokenizer).items() if size == difference]
    if thoughts < _MOST * len(asked.rows) and not (ways and difference):
        return []
    shows = f"{thoughts} of {len(asked.rows)} answers have thoughts" if thoughts else "no answer has thoughts"
    size = f"every prompt has {_more(difference)} than ours" if difference else "prompts have as many tokens as ours"
    as_in = f", as the template writes with {ways[0]}" if ways and difference else ""
    sentence = f"Thinking is on: {size}{as_in}, and {shows}; it was judged without"
    fix = "serve it with the export's chat template, or let requests say chat_template_kwargs enable_thinking false"
    return [Finding("thinking on", sentence, fix)]


def thinking_sizes(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """By how many tokens a prompt grows with each switch of the base's template, and with thoughts opened or closed."""
    template = str(tokenizer.chat_template)
    switches = sorted(
        meta.find_undeclared_variables(Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template))
    )
    question = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]

    def size(**options: object) -> int:
        text = str(tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True, **options))
        return len(tokenizer.encode(text, add_special_tokens=False))

    own = size(enable_thinking=False)
    thinking = [name for name in switches if "think" in name or "reason" in name]
    found = {
        f"{name} {str(value).lower()}": size(**{name: value}) - own for name in thinking for value in (True, False)
    }
    found |= {"no switch of thinking": size() - own} if thinking else {}
    literal = {f"{text!r} after it": len(tokenizer.encode(text, add_special_tokens=False)) for text in _LITERALS}
    return {name: tokens for name, tokens in (found | literal).items() if tokens}


def _system(asked: Asked) -> list[Finding]:
    """Whether the prompt grows with our system text."""
    (ours, theirs), (ours_long, theirs_long) = asked.texts.get("short", (0, 0)), asked.texts.get("long", (0, 0))
    if theirs is None or theirs_long is None or theirs_long - theirs == ours_long - ours:
        return []
    grown = (
        f"a system text that is {ours_long - ours} tokens longer gives a prompt that is {theirs_long - theirs} longer"
    )
    difference = _only(asked.differences)
    also = f"; prompts of the rows have {_more(difference)} than ours" if difference else ""
    sentence = f"Another system text is asked than the request's: {grown}{also}"
    return [
        Finding("another system text", sentence, "let the server or gateway pass the system message of the request")
    ]


def _prompt(asked: Asked, tokenizer: PreTrainedTokenizerFast) -> list[Finding]:
    differences = asked.differences
    if not any(differences):
        return []
    difference, fix = _only(differences), "serve it with the export's tokenizer and chat template"
    if difference is None:
        return [_varying(asked, fix)]
    end = _generation_prompt(tokenizer)
    if difference == -len(end):
        text = tokenizer.decode(end)
        sentence = (
            f"The generation prompt is missing: every prompt has {_more(difference)} than ours, those of {text!r}"
        )
        return [Finding("no generation prompt", sentence, f"{fix}, rendered with add_generation_prompt true")]
    what = "text is added to every prompt" if difference > 0 else "text is missing in every prompt"
    sentence = (
        f"Another system text or template: every prompt has {_more(difference)} than ours, whatever the row; "
        f"{what}: a system text of the server's own, or a part of the chat template"
    )
    return [Finding("another system text", sentence, f"{fix}, and pass the request's messages as they are")]


def _varying(asked: Asked, fix: str) -> Finding:
    pairs = [(len(row.prompt), row.reply.prompt_tokens or 0) for row in asked.rows]
    most = max(theirs for _, theirs in pairs)
    if all(theirs == min(ours, most) for ours, theirs in pairs):
        sentence = (
            f"Prompts are cut: none has more than {most} tokens, ours have up to {max(ours for ours, _ in pairs)}"
        )
        return Finding("prompts cut", sentence, "raise the server's context length (vLLM: --max-model-len)")
    lowest, highest = min(asked.differences), max(asked.differences)
    sentence = (
        f"Prompts differ from ours by {lowest:+} to {highest:+} tokens, row by row: another tokenizer, so another base"
    )
    return Finding("another tokenizer", sentence, fix)


def _generation_prompt(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The tokens that ask for an answer: those that a prompt has more than its messages."""
    question = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    texts = [
        str(tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=ask, enable_thinking=False))
        for ask in (False, True)
    ]
    without, asking = (tokenizer.encode(text, add_special_tokens=False) for text in texts)
    return list(asking[len(without) :])


def _only(differences: Sequence[int]) -> int | None:
    """The one difference of all rows, if it is one."""
    return differences[0] if len(set(differences)) == 1 else None


def _more(difference: int | None) -> str:
    count = abs(difference or 0)
    return f"{count} token{'s' * (count != 1)} {'more' if (difference or 0) > 0 else 'less'}"


def prompt_findings(
    asked: Asked, prompts: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerFast
) -> list[Finding]:
    """What the prompts of a folder have instead of our tokens, where both have as many."""
    pairs = [pair for row, theirs in zip(asked.rows, prompts, strict=True) for pair in _swapped(row.prompt, theirs)]
    if not pairs:
        return []
    (own, other), _ = Counter(pairs).most_common(1)[0]
    end = own == ChatEncoder.of(tokenizer).end_of_turn
    ours, theirs_text = (repr(tokenizer.decode([token])) for token in (own, other))
    sentence = f"The end of turn is another one: the template writes {theirs_text} where it was judged with {ours}"
    if not end:
        sentence = f"Prompts have other tokens: {theirs_text} where ours have {ours}"
    fix = "export it again: its tokenizer and chat template are not the registered ones"
    return [Finding("swapped end of turn" if end else "another template", sentence, fix)]


def _swapped(ours: Sequence[int], theirs: Sequence[int]) -> list[tuple[int, int]]:
    return [pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1]] if len(ours) == len(theirs) else []


# Ends


def _run_on(asked: Asked, tokenizer: PreTrainedTokenizerFast) -> list[Finding]:
    ends = tokenizer.decode([ChatEncoder.of(tokenizer).end_of_turn])
    rows = [row for row in asked.rows if row.ended]
    beyond = [row for row in rows if ends in row.reply.text or _goes_on(row)]
    if len(beyond) < max(1.0, _MOST * len(rows)):
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
    if most is None or count < _MOST * len(replies):
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


# Weights and decoding, from a replay


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


_AGAIN = "export the version again and serve that folder"

# What explains answers that differ: the defect, the sentence and the fix.
_EXPLAINED = {
    "base": (
        "adapter without effect",
        "The adapter has no effect: the answers are those of the base without it. Its B matrices are zero, or its "
        "keys have a prefix that the server does not know, or the base was asked under this name",
        f"{_AGAIN}; ask the adapter's name, not the base's (--model), and look for ignored keys in the server's log",
    ),
    "penalty": (
        "repetition penalty",
        "A penalty is on: a {detail} explains the answers; they were judged without",
        f"repetition_penalty 1, no presence or frequency penalty: {DECODING_FIX}",
    ),
    "prompt": (
        "swapped end of turn",
        "The end of turn is another one: prompts have as many tokens as ours, but {detail} explains the answers",
        "serve it with the export's tokenizer and chat template",
    ),
    "edited": (
        "adapter changed",
        "The adapter is not whole: {detail} explains the answers",
        f"{_AGAIN} (vLLM: --max-lora-rank of at least the adapter's rank, no layers left out)",
    ),
    "quantised": (
        "coarse quantisation",
        "Coarser weights answer, in four or eight bits, and decide otherwise ({detail}): near ties fall to the other "
        "side",
        "serve it in 16 bits; a version that was trained over four bits: export it merged with --weights nf4",
    ),
    "near": (
        "another revision of the base",
        "Other weights answer, close to the judged ones ({detail}): another revision of the base, another training of "
        "the adapter, or a coarse quantisation; sampling with a fixed seed would look alike",
        f"serve the base at the registered commit, and {_AGAIN}; for sampling, temperature 0: {DECODING_FIX}",
    ),
}
_UNEXPLAINED = (
    "another base",
    "Other weights answer ({detail}): another base, another adapter, or one revision of them far from the judged; "
    "nothing else that was tried explains the answers",
    f"serve the registered base and {_AGAIN}",
)


def explained_finding(explanation: Explanation, agreed: bool) -> Finding | None:
    """The finding on answers that differ from the judged ones although prompts and ends do not; ``None``: rounding.

    ``agreed``: whether the decisions are those that were judged.
    """
    kind, detail = explanation.kind, explanation.detail
    if kind in ("judged", "unquantised") or (kind == "quantised" and agreed):
        return None
    defect, sentence, fix = _EXPLAINED.get(kind, _UNEXPLAINED)
    if kind == "edited" and "rank" in detail:
        defect = "rank cut"
    return Finding(defect, sentence.replace("{detail}", detail), fix)
