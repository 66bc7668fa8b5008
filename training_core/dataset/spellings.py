"""What is the same however an export spells it: ids, cases and decisions."""

import re
import unicodedata
from decimal import Decimal
from typing import Any

# A sign or point before a digit is part of the number: otherwise 5 and -5, or 1.2 and 12, would be near-duplicates. So
# are marks of feet and inches after one, comparisons, per cent and degrees, currencies, and what people put for a word:
# arrows, marks of mathematics, ticks, crosses, stars and emoji. "> 30" is not "<= 30", and a tick is not a cross.
_MEANT = (
    "<>=\u00b1\u00ac\u00d7\u00f7\u00b0%\u2030\u2032\u2033$\u00a2-\u00a5\u20a0-\u20cf"
    "\u2190-\u22ff\u2600-\u27bf\u2a00-\u2aff\U0001f000-\U0001faff\uff04\uff05\uff0b\uff1c-\uff1e\uffe0-\uffe6"
)
_SEPARATORS = re.compile(rf"(?:(?![-+.~]\d|!=|(?<=\d)(?:'|\\\"))[^\w{_MEANT}]|_)+")

_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"), "-")
_UNSEEN = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))
_NUMBER = re.compile(r"[+-]?\d{1,40}(?:\.\d{0,40}(?:e\+?\d{1,2})?|e\+\d{1,2})?")  # 12E3 is a code
_NO_MEANING = re.compile(r"(?:(?![-+]+\s*$)[^\w<>=\u2248\u2260\u2264\u2265]|_)+")  # in a decision
_COMPARISONS = (("<=", "\u2264"), (">=", "\u2265"), ("!=", "\u2260"))


def case_text(case: str) -> str:
    """A case as letters, digits and what else is meant: equal for near-duplicates."""
    return _SEPARATORS.sub(" ", case.casefold())


def id_text(value: str) -> str:
    """An id as text: equal for 1001, ``1001.0`` (pandas), ``1.001E+03`` and ``'1001`` (Excel), and for 7 and ``007``.

    Capitals, white space at the edges, characters that are not seen, and the kinds of dashes do not count.
    """
    text = unicodedata.normalize("NFKC", value).translate(_DASHES | _UNSEEN).strip().removeprefix("'").casefold()
    if _NUMBER.fullmatch(text) and (number := Decimal(text)) == number.to_integral_value():
        return str(int(number))
    return text


def ids_of(value: Any) -> list[Any]:
    """The ids in a field: one, each of a list, or none where it is empty."""
    values = value if isinstance(value, list) else [value]
    return [one for one in values if one is not None and not (isinstance(one, str) and not id_text(one))]


def decision_text(decision: str) -> str:
    """A decision as letters and digits: equal for ``Not Eligible``, ``not_eligible`` and ``NotEligible.``.

    Comparisons count, and so do plus and minus at the end: ``>30`` is not ``<=30``, and ``A+`` is not ``A``.
    """
    text = unicodedata.normalize("NFKC", decision).translate(_DASHES | _UNSEEN).casefold()
    for written, sign in _COMPARISONS:
        text = text.replace(written, sign)
    return _NO_MEANING.sub("", text) or text
