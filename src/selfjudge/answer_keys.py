"""What two answers must share to be counted as the same: functions from a text to its key.

    >>> final_number("6 x 7 is 42."), final_number("The answer: 42.0"), final_number("I do not know!")
    ('42', '42', 'i do not know')

Counting answers protects from a judge's rare errors only where right answers repeat. Long texts never repeat letter by
letter; their final answers do.
"""

from __future__ import annotations

import re
from collections.abc import Callable

OPENING = "\"'`*_([{\u00ab\u201c\u2018\u00bf\u00a1"
CLOSING = ".,;:!?\u2026\u3002\"'`*_)]}\u00bb\u201d\u2019"
"""Marks that are stripped at the ends. A sign, a leading point or a per cent sign is not: -5, .5 and 5 % are not 5."""

_SIGN = r"(?P<sign>(?<![0-9A-Za-z)\]])[-\u2212])?"
_WHOLE = r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+"
_FRACTION = r"[0-9]*\\[dt]?frac\{[^{}]*\}\{[^{}]*\}|(?:[0-9]+ )?[0-9]+/[0-9]+"
_POWER = r"[0-9]+(?:\.[0-9]+)?[eE][+-]?[0-9]+"
_NUMBER = re.compile(
    rf"{_SIGN}(?:"
    rf"(?P<left_alone>{_FRACTION}|{_POWER})"
    rf"|(?P<whole>{_WHOLE})(?:\.(?P<decimals>[0-9]+))?"
    r"|(?<![0-9])\.(?P<below_one>[0-9]+))"
)


def exact(text: str) -> str:
    """The text as it is."""
    return text


def normalised(text: str) -> str:
    """Without case, repeated white space and punctuation at the ends; a text of punctuation alone stays as it is."""
    collapsed = " ".join(text.casefold().split())
    return collapsed.lstrip(OPENING + " ").rstrip(CLOSING + " ") or collapsed


def last_line(text: str) -> str:
    """The last line that is not empty, normalised."""
    lines = [line for line in text.splitlines() if line.strip()]
    return normalised(lines[-1] if lines else "")


def final_number(text: str) -> str:
    """The last number: 1,000 is 1000 and 3.0 is 3; fractions and powers of ten stay as written.

    A text without a number is normalised instead. A line of code or a date ends in a number as well.
    """
    found = [*_NUMBER.finditer(text)]
    return _number(found[-1]) if found else normalised(text)


def _number(found: re.Match[str]) -> str:
    sign = "-" if found["sign"] else ""
    if found["left_alone"]:
        return sign + found["left_alone"]
    whole = (found["whole"] or "0").replace(",", "").lstrip("0") or "0"
    decimals = (found["decimals"] or found["below_one"] or "").rstrip("0")
    plain = f"{whole}.{decimals}" if decimals else whole
    return plain if plain == "0" else sign + plain


ANSWER_KEYS: dict[str, Callable[[str], str]] = {
    "exact": exact,
    "final-number": final_number,
    "last-line": last_line,
    "normalised": normalised,
}
