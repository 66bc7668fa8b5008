"""Defects that prompts show: how many tokens they have there, or which."""

from collections import Counter
from collections.abc import Sequence

from jinja2 import Environment, meta
from transformers import PreTrainedTokenizerFast

from training_core.export.findings import MOST, Asked, Finding
from training_core.prompts.chat_encoding import ChatEncoder

_THOUGHTS = ("<think>", "</think>")
_LITERALS = ("<think>\n", "<think>", "<think>\n\n</think>\n\n", "<think></think>")


def prompt_defect(asked: Asked, tokenizer: PreTrainedTokenizerFast) -> list[Finding]:
    """The first that the numbers of prompt tokens show; none where they are ours."""
    return [*_thinking(asked, tokenizer), *_system(asked), *_prompt(asked, tokenizer)][:1]


def _thinking(asked: Asked, tokenizer: PreTrainedTokenizerFast) -> list[Finding]:
    thoughts = sum(bool(r.reply.reasoning) or any(t in r.reply.text for t in _THOUGHTS) for r in asked.rows)
    difference = _only(asked.differences)
    ways = [name for name, size in thinking_sizes(tokenizer).items() if size == difference]
    if thoughts < MOST * len(asked.rows) and not (ways and difference):
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
