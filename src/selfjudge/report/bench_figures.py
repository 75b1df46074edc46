"""What the figures of a benchmark are: a name, a place in a table, and how they are written.

    >>> figure_rows({"sections": {"Chat": {"accuracy": {"value": 0.9, "low": 0.85, "high": 0.95, "n": 358}}}})
    [FigureRow(part='Sections, %', label='Chat', text=Cell(text='90.0', aside=...), n=358)]

Figures that are known get their names from the tables here; every other one is shown under its key in words, so that a
new benchmark's figures appear without a change. What is no number (lists of what is missing, notes) becomes a remark.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from selfjudge.report.blocks import MISSING, Cell, estimate, number, percent

Figures = Mapping[str, Any]
Path = tuple[str, ...]

MAIN: dict[Path, str] = {
    ("overall",): "overall",
    ("overall", "accuracy"): "overall accuracy",
    ("judge_accuracy",): "accuracy over all pairs",
}
"""Runs are ranked by the first of these that is known: a benchmark's own figure before that of all pairs."""
KIND = "judge_accuracy_"
PAIRS = "judge_accuracy"
PARTS = {
    "": "All rows",
    PAIRS: "All pairs of a right and a wrong response, %",
    KIND: "Against each kind of wrong response, %",
    "by_category": "By category, %",
}
LABELS = {
    "judge_accuracy": "a tie counts half",
    "judge_strict": "strict: ties and missing are lost",
    "mean_label_mass": "Mean label mass, %",
    "pairs": "Pairs of a right and a wrong response",
    "prompts": "Prompts",
    "responses": "Responses",
    "missing": "Responses without a score",
    "truncated": "Responses cut to fit the context",
    "mean_score": "Mean score",
    "mean_margin": "Mean of best minus worst score",
}
ORDER = ("overall", "sections", "domains", "ties", "categories", PAIRS, KIND, "by_category")
"""Of the parts; then those that are not named here, then LATE."""
LATE = ("subsets", "other_subsets", "")
ELSEWHERE = ("calibration", "bias")
"""Have sections of their own on the page."""
SHARES = re.compile(r"accuracy|overall|strict|share|rate|mass|spread|best|section|domain|subset|categor")
"""Parts of a key that make its figure a share, written in per cent."""
COMPLETE = ("complete", "rows", "subsets")
"""What a part says of its rows where it is complete, which needs no word."""
INCOMPLETE = ("complete", "subsets")
"""Of a part with too few rows: what its number of rows says already."""


class Estimate(NamedTuple):
    """A value with its 95 % interval, as far as the files have it; `n` is how many cases it is of."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None


class FigureRow(NamedTuple):
    """One row of the table of figures."""

    part: str
    label: str
    text: Cell
    n: int | None


def known_number(value: Any) -> Any:
    """The number, or None for whatever is none: missing figures, JSON's or Python's way."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    return value if is_number else None


def is_estimate(value: Any) -> bool:
    """True for {"value": ..., "low": ..., "high": ...}, whatever stands beside them."""
    return isinstance(value, dict) and {"value", "low", "high"} <= set(cast(dict[str, Any], value))


def estimate_at(figures: Figures, path: Path) -> Estimate:
    """The figure at the path, with or without interval; the value None where it is no number or not there."""
    found: Any = figures
    for key in path:
        found = cast(dict[str, Any], found).get(key) if isinstance(found, dict) else None
    if not is_estimate(found):
        return Estimate(known_number(found))
    return Estimate(*(known_number(found.get(name)) for name in Estimate._fields))


def main_path(all_figures: Sequence[Figures]) -> Path:
    """What runs over the same rows are ranked by: the first main figure that one of them has."""
    having = (path for path in MAIN if any(estimate_at(one, path).value is not None for one in all_figures))
    return next(having, ("judge_accuracy",))


# The table


def figure_rows(figures: Figures) -> list[FigureRow]:
    """All numbers but those shown elsewhere, in the order of their parts."""
    numbers = [(path, value) for path, value in _leaves(figures, ()) if _is_figure(value)]
    rows = [(_place(path), _row(path, value)) for path, value in numbers]
    return [row for _, row in sorted(rows, key=lambda entry: entry[0])]


def remarks(figures: Figures) -> list[str]:
    """What is no number, in words; nothing for what is complete or empty."""
    others = [(path, value) for path, value in _leaves(figures, ()) if not _is_figure(value) and value != []]
    return [f"{': '.join(in_words(key) for key in path)}: {_said(value)}" for path, value in others]


def matrices(figures: Figures, title: str = "") -> list[tuple[str, dict[str, list[float | None]]]]:
    """Every `matrix` of the figures with the name of what it belongs to: row -> its cells."""
    found: list[tuple[str, dict[str, list[float | None]]]] = []
    for key, value in figures.items():
        if key == "matrix" and isinstance(value, dict):
            rows = cast(dict[str, Any], value)
            found.append((title, {name: [known_number(cell) for cell in cells] for name, cells in rows.items()}))
        elif isinstance(value, dict):
            found += matrices(cast(dict[str, Any], value), key)
    return found


def _leaves(figures: Figures, path: Path) -> Iterator[tuple[Path, Any]]:
    complete = figures.get("complete")
    silent = COMPLETE if complete is True else INCOMPLETE if complete is False and path else ()
    for key, value in figures.items():
        if (not path and key in ELSEWHERE) or key == "matrix":
            continue
        if isinstance(value, dict) and not is_estimate(value):
            yield from _leaves(cast(dict[str, Any], value), (*path, key))
        elif key not in silent:
            yield (*path, key), value


def _is_figure(value: Any) -> bool:
    return value is None or is_estimate(value) or known_number(value) is not None


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(str(one) for one in cast(list[Any], value)) if isinstance(value, list) else str(value)


def _place(path: Path) -> int:
    part = _part(path)
    if part in LATE:
        return 100 + LATE.index(part)
    return ORDER.index(part) if part in ORDER else len(ORDER)


def _part(path: Path) -> str:
    """The key under which the figure stands; those that stand alone are of all rows."""
    first = path[0]
    if len(path) > 1 or first == "overall":
        return first
    if first in ("judge_accuracy", "judge_strict"):
        return PAIRS
    return KIND if first.startswith(KIND) else ""


def _row(path: Path, value: Any) -> FigureRow:
    part = _part(path)
    share = bool(SHARES.search(".".join(path)))
    title = PARTS.get(part) or in_words(part) + (", %" if share else "")
    count = estimate_at({"": value}, ("",)).n
    return FigureRow(title, _label(path, part, share), written(value, share), count)


def _label(path: Path, part: str, share: bool) -> str:
    """Names of subsets and the like stand as they are; `Chat: accuracy` is the figure of Chat itself."""
    first, rest = path[0], list(path[1:])
    if part == KIND:
        return first.removeprefix(KIND)
    if not rest and part != "overall":
        return LABELS.get(first) or in_words(first) + (", %" if share else "")
    if len(rest) > 1 and rest[-1] == "accuracy":
        rest.pop()
    names = rest or [first]
    return ": ".join([names[0], *(name.replace("_", " ") for name in names[1:])])


def written(value: Any, share: bool) -> Cell:
    """A figure with its interval, and with its strict value where that is another."""
    if not is_estimate(value):
        is_count = isinstance(value, int)
        return Cell(percent(known_number(value), 2) if share and not is_count else number(known_number(value)))
    write = percent if share else number
    cell = estimate(value, write)
    strict = known_number(value.get("strict"))
    if strict is None or write(strict) == cell.text:
        return cell
    return Cell(cell.text, ", ".join(filter(None, [cell.aside, f"strict {write(strict)}"])))


def in_words(key: str) -> str:
    """`style_bias` -> `Style bias`."""
    words = key.replace("_", " ")
    return words[:1].upper() + words[1:]


class JoinedRow(NamedTuple):
    """One figure of several runs."""

    label: str
    cells: list[Cell]
    n: str


def joined(tables: Sequence[Sequence[FigureRow]]) -> list[tuple[str, list[JoinedRow]]]:
    """The rows of several runs side by side: part -> its rows."""
    places = list(dict.fromkeys((row.part, row.label) for table in tables for row in table))
    found = [{(row.part, row.label): row for row in table} for table in tables]
    parts = dict.fromkeys(part for part, _ in places)
    return [(part, [_joined_row(found, place) for place in places if place[0] == part]) for part in parts]


def _joined_row(found: Sequence[dict[tuple[str, str], FigureRow]], place: tuple[str, str]) -> JoinedRow:
    rows = [table.get(place) for table in found]
    counts = list(dict.fromkeys(number(row.n) for row in rows if row is not None and row.n is not None))
    return JoinedRow(place[1], [Cell(MISSING) if row is None else row.text for row in rows], " / ".join(counts))
