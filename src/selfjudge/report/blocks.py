"""What a section of the page is made of, and how figures are written.

    >>> percent(0.483), number(12.345), estimate({"value": 0.483, "low": None, "high": None, "n": 1}, percent)
    ('48.3', '12.3', Cell(text='48.3', aside=''))

A figure that is None is MISSING wherever it is written, never a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from markupsafe import Markup

MISSING = "\u2014"
"""What stands in the place of a figure that the files do not hold."""


class Cell(NamedTuple):
    """A figure, its interval or count in smaller type, and a small drawing; `shade` from 0 to 1 colours the ground."""

    text: str
    aside: str = ""
    mark: Markup = Markup("")
    shade: float | None = None


class Figure(NamedTuple):
    """One chart under its title."""

    title: str
    svg: Markup


class LegendEntry(NamedTuple):
    key: Markup
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph: plain, `alarm`, or `gap` for what is missing and why."""

    text: str
    look: str = "plain"
    kind: str = "text"


@dataclass(frozen=True)
class Charts:
    """Charts side by side under one legend."""

    figures: Sequence[Figure]
    legend: Sequence[LegendEntry] = ()
    title: str = ""
    note: str = ""
    size: str = "small"
    folded: bool = False
    kind: str = "charts"


@dataclass(frozen=True)
class Table:
    """Rows by group; the first cell of a row is its header."""

    caption: str
    head: Sequence[str]
    groups: Sequence[tuple[str, Sequence[Sequence[Cell]]]]
    folded: bool = False
    prose: bool = False
    """True when the last column is text."""
    names: Sequence[int] = ()
    """Places of the columns that are names, not figures."""
    beside: bool = False
    """True for a small table that may stand beside others of its kind."""
    kind: str = "table"


@dataclass(frozen=True)
class Facts:
    """Terms and what they are."""

    entries: Sequence[tuple[str, str]]
    kind: str = "facts"


@dataclass(frozen=True)
class Command:
    """A command line, in parts that stay on one line each."""

    parts: Sequence[str]
    kind: str = "command"


Block = Text | Charts | Table | Facts | Command


@dataclass(frozen=True)
class Section:
    """One part of the page, in its order."""

    key: str
    title: str
    blocks: list[Block] = field(default_factory=list[Block])


def percent(value: float | None, digits: int = 1) -> str:
    """`0.4834` -> `48.3`, without the sign."""
    return MISSING if value is None else _minus(f"{100 * value:.{digits}f}")


def number(value: float | None) -> str:
    """A count in full, anything else with three significant digits."""
    if value is None:
        return MISSING
    if isinstance(value, int):
        return _minus(f"{value:,}".replace(",", "\u202f"))
    if not 0.001 <= abs(value) < 1e5:
        return _minus(f"{value:.3g}")
    return _minus(f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}")


def _minus(text: str) -> str:
    return text.replace("-", "\u2212")


def estimate(found: dict[str, Any] | None, write: Callable[[float | None], str]) -> Cell:
    """A figure of a summary with its 95 % interval."""
    if found is None or found["value"] is None:
        return Cell(MISSING)
    if found["low"] is None or found["high"] is None:
        return Cell(write(found["value"]))
    return Cell(write(found["value"]), f"{write(found['low'])} \u2013 {write(found['high'])}")
