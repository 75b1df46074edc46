"""Line charts and histograms as inline SVG text, by pure functions; colours and fonts are the page's CSS classes.

    >>> axes = Axes("Accuracy", x_ticks=((0, "start"), (1, "1")), y_ticks=(0, 0.5, 1), unit="%")
    >>> line_chart(axes, [Series("yes-no", (Point(0, 0.5), Point(1, 0.6)))])
    Markup('<svg class="chart" ...

A series has a colour, a marker and a dash pattern of its own, so that none depends on colour alone. A value that is
None leaves a gap; where no series has one, the chart says "n/a".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from markupsafe import Markup

TOP, BOTTOM, LEFT, RIGHT = 10.0, 28.0, 52.0, 10.0
STYLES = 6
STRIP_WIDTH, STRIP_HEIGHT = 150, 14
COUNTS_HEIGHT = 46


class Point(NamedTuple):
    """`low` and `high` are the ends of the interval; `tip` is what the tooltip says."""

    x: float
    y: float | None
    low: float | None = None
    high: float | None = None
    tip: str = ""


class Series(NamedTuple):
    """`style` 0..5 picks colour, marker and dashes; without `line` only the markers are drawn, and the reverse."""

    name: str
    points: tuple[Point, ...]
    style: int = 0
    line: bool = True
    marks: bool = True


@dataclass(frozen=True)
class Axes:
    """What surrounds the data; `title` is the accessible name."""

    title: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: Sequence[float]
    """Their ends are the axis's."""
    unit: str = ""
    width: int = 300
    height: int = 190
    dividers: tuple[float, ...] = ()
    x_low: float = math.nan
    x_high: float = math.nan
    """By default the x axis spans the ticks, with half a step on both sides."""


class Bin(NamedTuple):
    """Counts per kind in one interval of a histogram."""

    low: float
    high: float
    counts: tuple[int, ...]


class ReliabilityBin(NamedTuple):
    """The n predictions from low to high: their mean, and the share that was right; both None where n is 0."""

    low: float
    high: float
    n: int
    predicted: float | None
    right: float | None
    tip: str = ""


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that cover low..high, about `count` steps; their ends make a good axis."""
    span = (high - low) or abs(high) or 1.0
    raw = span / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = magnitude * next(factor for factor in (1, 2, 2.5, 5, 10) if raw <= factor * magnitude * (1 + 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def extent(series: Iterable[Series]) -> tuple[float, float] | None:
    """Smallest and largest value, intervals included; None where there is no value."""
    points = [point for one in series for point in one.points if point.y is not None]
    values = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
    return (min(values), max(values)) if values else None


def line_chart(axes: Axes, series: Sequence[Series]) -> Markup:
    """The series with their intervals as whiskers, side by side where they share an x."""
    x, y = _x_scale(axes), _y_scale(axes)
    shift = _shifts(series)
    parts = [_grid(axes, y), _x_axis(axes, x), _dividers(axes, x), _absent(axes, series, x)]
    for one, offset in zip(series, shift, strict=True):
        parts += [_whiskers(one, x, y, offset), _line(one, x, y, offset), _marks(one, x, y, offset)]
    return _svg(axes, Markup("").join(parts))


def histogram(axes: Axes, bins: Sequence[Bin], kinds: Sequence[str], marked: float | None = None) -> Markup:
    """Stacked bars, one class per kind; `marked` draws a vertical line at the mean."""
    x, y = _x_scale(axes), _y_scale(axes)
    bars = [_stack(bin, kinds, x, y) for bin in bins]
    line = Markup("")
    if marked is not None:
        line = _upright("mean", x(marked), TOP - 4, axes.height - BOTTOM)
    return _svg(axes, Markup("").join([_grid(axes, y), *bars, line, _x_axis(axes, x)]))


def interval_strip(
    estimate: tuple[float, float | None, float | None], axis: tuple[float, float], marked: float, tip: str
) -> Markup:
    """One line of a table as a picture: (value, low, high) on the axis, with a dashed line at `marked`."""
    value, low, high = estimate
    x = _strip_scale(axis)
    parts = [_upright("mean", x(marked), 0, STRIP_HEIGHT)]
    if low is not None and high is not None:
        bar = Markup('<line class="whisker s0" x1="{:.1f}" x2="{:.1f}" y1="{y}" y2="{y}"/>')
        parts.append(bar.format(x(low), x(high), y=STRIP_HEIGHT / 2))
    parts.append(_marker(0, x(value), STRIP_HEIGHT / 2, tip))
    return Markup('<svg class="strip" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        STRIP_WIDTH, STRIP_HEIGHT, tip, Markup("").join(parts)
    )


def _strip_scale(axis: tuple[float, float]) -> Scale:
    factor = (STRIP_WIDTH - 12) / ((axis[1] - axis[0]) or 1.0)
    return Scale(factor, 6 - factor * axis[0])


def _upright(look: str, x: float, top: float, bottom: float) -> Markup:
    return Markup('<line class="{0}" x1="{1:.1f}" x2="{1:.1f}" y1="{2:.1f}" y2="{3:.1f}"/>').format(
        look, x, top, bottom
    )


def reliability_chart(axes: Axes, bins: Sequence[ReliabilityBin]) -> Markup:
    """The share that was right over the predicted one, the diagonal, and below how many cases each bin has."""
    x, y = _x_scale(axes), _y_scale(axes)
    diagonal = Markup('<line class="mean" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
        x(axes.x_low), x(axes.x_high), y(axes.x_low), y(axes.x_high)
    )
    points = Series("", tuple(Point(one.predicted or 0.0, one.right, tip=one.tip) for one in bins))
    parts = [_grid(axes, y), _x_axis(axes, x), diagonal, _line(points, x, y, 0), _marks(points, x, y, 0)]
    taller = replace(axes, height=axes.height + COUNTS_HEIGHT)
    return _svg(taller, Markup("").join([*parts, *_counts(bins, x, taller.height)]))


def _counts(bins: Sequence[ReliabilityBin], x: Scale, base: float) -> list[Markup]:
    """A bar and the number for each bin."""
    most = max([1, *(one.n for one in bins)])
    bar = Markup(
        '<rect class="bar count" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" data-tip="{}"/>'
        '<text class="tick count" text-anchor="middle" x="{:.1f}" y="{:.1f}">{}</text>'
    )
    found: list[Markup] = []
    for one in bins:
        if not one.n:
            continue
        left, width, height = x(one.low), x(one.high) - x(one.low), (COUNTS_HEIGHT - 14) * one.n / most
        place = (left + 0.5, base - height, width - 1, height, one.tip or f"{one.n}")
        found.append(bar.format(*place, left + width / 2, base - height - 3, _short(one.n)))
    return found


def _short(count: int) -> str:
    """`12345` -> `12k`: what fits over a bar."""
    return f"{count}" if count < 1000 else f"{count / 1000:.1f}k" if count < 10_000 else f"{count / 1000:.0f}k"


def bins_of(groups: Sequence[Sequence[float]], low: float, high: float, count: int = 28) -> list[Bin]:
    """`count` equal intervals of low..high with how many values of each group fall into them."""
    width = (high - low) / count or 1.0
    totals = [[0] * len(groups) for _ in range(count)]
    for kind, values in enumerate(groups):
        for value in values:
            totals[min(max(int((value - low) / width), 0), count - 1)][kind] += 1
    return [Bin(low + i * width, low + (i + 1) * width, tuple(total)) for i, total in enumerate(totals)]


def legend_key(style: int, line: bool = True, marks: bool = True) -> Markup:
    """A short piece of a series, for the legend."""
    stroke = Markup('<line class="line s{}" x1="0" x2="26" y1="7" y2="7"/>').format(style) if line else ""
    mark = _marker(style, 13, 7, "") if marks else ""
    return Markup('<svg class="key" viewBox="0 0 26 14" aria-hidden="true">{}{}</svg>').format(stroke, mark)


def swatch(kind: str) -> Markup:
    """A piece of a histogram's bar, for the legend."""
    bar = Markup('<rect class="bar {}" x="5" y="1" width="16" height="12"/>').format(kind)
    return Markup('<svg class="key" viewBox="0 0 26 14" aria-hidden="true">{}</svg>').format(bar)


# Scales


class Scale(NamedTuple):
    """Value -> pixel."""

    factor: float
    offset: float

    def __call__(self, value: float) -> float:
        return self.factor * value + self.offset


def _x_scale(axes: Axes) -> Scale:
    places = [place for place, _ in axes.x_ticks] or [0.0]
    low = min(places) - 0.5 if math.isnan(axes.x_low) else axes.x_low
    high = max(places) + 0.5 if math.isnan(axes.x_high) else axes.x_high
    factor = (axes.width - LEFT - RIGHT) / ((high - low) or 1.0)
    return Scale(factor, LEFT - factor * low)


def _y_scale(axes: Axes) -> Scale:
    factor = (TOP + BOTTOM - axes.height) / ((axes.y_ticks[-1] - axes.y_ticks[0]) or 1.0)
    return Scale(factor, axes.height - BOTTOM - factor * axes.y_ticks[0])


def _shifts(series: Sequence[Series]) -> list[float]:
    """Pixels by which each series is moved sideways, so that whiskers at the same x stay apart."""
    if not any(point.low is not None for one in series for point in one.points):
        return [0.0] * len(series)
    return [5.0 * (index - (len(series) - 1) / 2) for index in range(len(series))]


# Parts


def _svg(axes: Axes, inside: Markup) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        axes.width, axes.height, axes.title, inside
    )


def _grid(axes: Axes, y: Scale) -> Markup:
    line = Markup(
        '<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        '<text class="tick" text-anchor="end" x="{:.1f}" y="{text:.1f}">{}</text>'
    )
    return Markup("").join(
        line.format(LEFT, axes.width - RIGHT, LEFT - 6, tick_label(tick, axes.unit), y=y(tick), text=y(tick) + 4)
        for tick in axes.y_ticks
    )


def tick_label(value: float, unit: str) -> str:
    """`0.25`, `%` -> `25 %`; a proper minus sign."""
    number = f"{100 * value:.4g}" if unit == "%" else f"{value:.4g}"
    return number.replace("-", "\u2212") + ("\u202f%" if unit == "%" else "")


def _x_axis(axes: Axes, x: Scale) -> Markup:
    base = axes.height - BOTTOM
    parts = [Markup('<line class="axis" x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(LEFT, axes.width - RIGHT, y=base)]
    label = Markup('<text class="tick" text-anchor="middle" x="{:.1f}" y="{:.1f}">{}</text>')
    parts += [label.format(x(place), base + 18, text) for place, text in axes.x_ticks]
    return Markup("").join(parts)


def _dividers(axes: Axes, x: Scale) -> Markup:
    line = Markup('<line class="divider" x1="{x:.1f}" x2="{x:.1f}" y1="{}" y2="{}"/>')
    return Markup("").join(line.format(TOP, axes.height - BOTTOM, x=x(place)) for place in axes.dividers)


def _absent(axes: Axes, series: Sequence[Series], x: Scale) -> Markup:
    """`n/a` over every x tick at which there are points, but none with a value."""
    present = {point.x for one in series for point in one.points if point.y is not None}
    asked = {point.x for one in series for point in one.points} & {place for place, _ in axes.x_ticks}
    text = Markup('<text class="absent" text-anchor="middle" x="{:.1f}" y="{:.1f}">n/a</text>')
    return Markup("").join(text.format(x(place), axes.height - BOTTOM - 6) for place in sorted(asked - present))


def _whiskers(series: Series, x: Scale, y: Scale, shift: float) -> Markup:
    line = Markup('<line class="whisker s{}" x1="{x:.1f}" x2="{x:.1f}" y1="{:.1f}" y2="{:.1f}"/>')
    return Markup("").join(
        line.format(series.style, y(point.low), y(point.high), x=x(point.x) + shift)
        for point in series.points
        if point.low is not None and point.high is not None
    )


def _line(series: Series, x: Scale, y: Scale, shift: float) -> Markup:
    if not series.line:
        return Markup("")
    return Markup('<path class="line s{}" d="{}"/>').format(series.style, _path(series.points, x, y, shift))


def _path(points: Sequence[Point], x: Scale, y: Scale, shift: float) -> str:
    """A value that is missing lifts the pen."""
    commands: list[str] = []
    pen = "M"
    for point in points:
        if point.y is None:
            pen = "M"
            continue
        commands.append(f"{pen}{x(point.x) + shift:.1f} {y(point.y):.1f}")
        pen = "L"
    return "".join(commands)


def _marks(series: Series, x: Scale, y: Scale, shift: float) -> Markup:
    """Markers that show the tip; without markers only the places that show it."""
    target = Markup('<circle class="target" r="5" cx="{:.1f}" cy="{:.1f}" data-tip="{}"/>')
    draw = partial(_marker, series.style) if series.marks else target.format
    return Markup("").join(
        draw(x(point.x) + shift, y(point.y), point.tip) for point in series.points if point.y is not None
    )


_MARKERS = (
    '<circle {} r="4"/>',
    '<rect {} x="-3.6" y="-3.6" width="7.2" height="7.2"/>',
    '<path {} d="M0 -4.8L4.6 3.6H-4.6Z"/>',
    '<path {} d="M0 -5L5 0L0 5L-5 0Z"/>',
    '<path {} d="M0 4.8L4.6 -3.6H-4.6Z"/>',
    '<path {} d="M-4 -4L4 4M-4 4L4 -4"/>',
)


def _marker(style: int, x: float, y: float, tip: str) -> Markup:
    shape = Markup(_MARKERS[style % STYLES]).format(Markup('class="mark s{}"').format(style))
    target = Markup('<circle class="target" r="10" data-tip="{}"/>').format(tip) if tip else Markup("")
    return Markup('<g transform="translate({:.1f} {:.1f})">{}{}</g>').format(x, y, shape, target)


def _stack(bin: Bin, kinds: Sequence[str], x: Scale, y: Scale) -> Markup:
    parts: list[Markup] = []
    below = 0
    for kind, count in zip(kinds, bin.counts, strict=True):
        if count:
            parts.append(_bar(bin, kind, (below, below + count), x, y))
        below += count
    return Markup("").join(parts)


def _bar(bin: Bin, kind: str, span: tuple[int, int], x: Scale, y: Scale) -> Markup:
    between = f"{bin.low:.2f} to {bin.high:.2f}".replace("-", "\u2212")
    tip = f"{between}: {span[1] - span[0]} {kind}"
    left, width = x(bin.low) + 0.4, max(x(bin.high) - x(bin.low) - 0.8, 0.6)
    return Markup('<rect class="bar {}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" data-tip="{}"/>').format(
        kind, left, y(span[1]), width, y(span[0]) - y(span[1]), tip
    )
