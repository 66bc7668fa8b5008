"""What a base's chat template must do, so that training and serving ask for an answer with the same tokens."""

import re
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from training_core.config import SettingsError

_QUESTION = ("system", "user")
# What templates raise themselves, and what their expressions do: they are programs.
_TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError)
_THOUGHTS = re.compile(r"[<\[◁](/?)\|?\w*(?:think|thought|reason)\w*\|?[>\]▷]", re.IGNORECASE)
_NO_THINKING = "{%- set enable_thinking = false -%}\n"


def placeholder(index: int) -> str:
    """What stands for the text of a message in a rendered template."""
    return f"\ue000{index}\ue001"


def render(tokenizer: PreTrainedTokenizerFast, roles: Sequence[str], *, ask: bool) -> str:
    """The template around placeholders, without thinking; with ``ask`` up to where an answer begins."""
    return _render(tokenizer, roles, add_generation_prompt=ask, enable_thinking=False)


def _render(tokenizer: PreTrainedTokenizerFast, roles: Sequence[str], **options: Any) -> str:
    messages = [{"role": role, "content": placeholder(index)} for index, role in enumerate(roles)]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))


def end_of_turn(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The control token with which the template ends an answer, if it does."""
    after = render(tokenizer, ("user", "assistant"), ask=False).partition(placeholder(1))[2]
    first = next(iter(tokenizer.encode(after, add_special_tokens=False)), None)
    return first if first in tokenizer.get_added_vocab().values() else None


def served_template(tokenizer: PreTrainedTokenizerFast) -> str:
    """The template that asks as in training where nobody says so: without the thinking of Qwen3 and Qwen3.5."""
    template = str(tokenizer.chat_template)
    served = _render(tokenizer, _QUESTION, add_generation_prompt=True)
    return template if served == render(tokenizer, _QUESTION, ask=True) else _NO_THINKING + template


def require_usable_template(tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise ``SettingsError`` where a base cannot be asked for an answer, or not twice with the same tokens."""
    if problem := _problem(tokenizer):
        of_base = f"the chat template of {tokenizer.name_or_path!r}"
        raise SettingsError([f"model_name: {of_base} {problem}; choose an instruct model that answers at once"])


def _problem(tokenizer: PreTrainedTokenizerFast) -> str | None:
    if not tokenizer.chat_template:
        return "is missing"
    try:
        asked, end = render(tokenizer, _QUESTION, ask=True), end_of_turn(tokenizer)
        served = _render(tokenizer, _QUESTION, add_generation_prompt=True, chat_template=served_template(tokenizer))
    except _TEMPLATE_ERRORS as error:
        return f"cannot write a system text and a question ({error})"
    if re.findall(f"{placeholder(0)}|{placeholder(1)}", asked) != [placeholder(0), placeholder(1)]:
        return "leaves out, repeats or reorders messages"
    if end is None:
        return "ends an answer without a control token, and nothing would end it"
    if opened := _opened(asked.rpartition(placeholder(1))[2]):
        return f"opens {opened} before every answer"
    if served != asked or "strftime_now" in str(tokenizer.chat_template):
        return "asks at another time with other tokens than in training"
    return None


def _opened(text: str) -> str | None:
    """The mark with which thinking begins that does not end again: <think>, [THINK], <|begin_of_thought|>, …"""
    marks = list(_THOUGHTS.finditer(text))
    opening = [mark[0] for mark in marks if not mark[1] and "end" not in mark[0].lower()]
    return opening[-1] if 2 * len(opening) > len(marks) else None
