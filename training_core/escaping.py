"""Texts from rows, file names, models and servers, made harmless for where they are shown: one function per medium.

HTML needs no function: the environment of all pages (``training_core.pages``) escapes every value.
"""

import re
from html import escape

# Control characters except tab and newline, line separators, marks that reverse the direction of what follows, and
# halves of characters, as in file names of another encoding.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_HIDDEN = "***"
# In github://owner:name@branch, the place before @ is no password.
_LOGIN = re.compile(
    r"(?<!github)(?<!\bgit)://(?:[^\s/@:]*:(?!\d*(?:[/\s]|$))\S*@|(?<=https://)[^\s/@]+@|(?<=http://)[^\s/@]+@)"
)
_WORD = re.compile(r"\S+")
_SIGNED = re.compile(
    r"([?&](?=[\w.-]*+=)[\w.-]*(?:token|secret|password|passwd|signature|credential|api_?key|access_?key|\bsig)[\w.-]*=)[^&\s#'\"]+",
    re.IGNORECASE,
)
# What Markdown reads as more than text, wherever it is; then what it does so at the beginning of a block.
_MARKUP = re.compile(
    r"[\\`*\[\]|~@]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|:(?=//)|(?<=\bwww)\.|^[#+=-](?=[\s#=-])", re.IGNORECASE
)
_NUMBERED = re.compile(r"^\d+(?=[.)]\s)")


def without_secrets(text: str) -> str:
    """The text with ``***`` for the password, or the login as a whole, of each address, and for keys in its query."""
    return _SIGNED.sub(rf"\1{_HIDDEN}", _WORD.sub(_without_login, text))


def _without_login(word: re.Match[str]) -> str:
    """A login ends with the word's last @. To look further, from each :// on, would take minutes for a long word."""
    before, at, after = word[0].rpartition("@")
    return _LOGIN.sub(f"://{_HIDDEN}@", before + at) + after


def shown(text: str) -> str:
    """The text as a terminal, a log or a page may show it: secrets hidden, and ``\\x1b`` for what cannot be seen."""
    return _UNSEEN.sub(
        lambda found: found[0].encode("unicode_escape").decode("ascii"), without_secrets(text.replace("\r\n", "\n"))
    )


def on_one_line(text: str, longest: int | None = None) -> str:
    """The same on one line, cut after so many characters."""
    line = " ".join(text.split())
    return shown(line if longest is None or len(line) <= longest else f"{line[:longest]} …")


def is_seen(name: str) -> bool:
    """Whether a name is shown as it is, on one line."""
    return not _UNSEEN.search(name) and not {"\n", "\t"} & set(name)


def in_markdown(text: str) -> str:
    """The text on one line, so that Markdown shows it as it is: no link, picture, table, code or HTML comes of it."""
    line = _MARKUP.sub(r"\\\g<0>", escape(on_one_line(text), quote=False))
    return _NUMBERED.sub(r"\g<0>\\", line)
