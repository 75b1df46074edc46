"""Figures by round -> charts with one series per arm; what several sections share.

>>> panel("Mean tokens", series_of(run, lambda _, item: item.steps["samples"].summary.get("mean_tokens")))
Figure(title='Mean tokens', svg=Markup('<svg ...'))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from selfjudge.report.blocks import Figure, LegendEntry, number, percent
from selfjudge.report.charts import Axes, Point, Series, extent, legend_key, line_chart, nice_ticks
from selfjudge.report.loading import Arm, Round, Run

Getter = Callable[[Arm, Round], Any]
"""A figure of a round: a number, {"value", "low", "high"}, or None."""
MOST_TICKS = 10


def series_of(run: Run, get: Getter, unit: str = "", first: int = 0) -> list[Series]:
    """One series per arm, from round `first` on."""
    return [curve(arm, get, index, arm.name, unit, first) for index, arm in enumerate(run.arms)]


def curve(arm: Arm, get: Getter, style: int, name: str, unit: str = "", first: int = 0) -> Series:
    """One series over the rounds of an arm."""
    points = tuple(_point(item, get(arm, item), name, unit) for item in arm.rounds[first:])
    return Series(name, points, style)


def _point(item: Round, found: Any, name: str, unit: str) -> Point:
    figure: dict[str, Any] = found if isinstance(found, dict) else {"value": found, "low": None, "high": None}
    value, low, high = figure["value"], figure["low"], figure["high"]
    if value is None:
        return Point(item.number, None)
    interval = "" if low is None else f" (95 % interval {_written(low, unit)} to {_written(high, unit)})"
    return Point(item.number, value, low, high, f"{name}, {item.label}: {_written(value, unit)}{interval}")


def _written(value: float, unit: str) -> str:
    return f"{percent(value)} %" if unit == "%" else number(value)


def panel(
    title: str, series: Sequence[Series], unit: str = "", y_ticks: Sequence[float] = (), large: bool = False
) -> Figure:
    """A chart over the rounds; `y_ticks` make several charts comparable."""
    numbers = sorted({int(point.x) for one in series for point in one.points})
    width, height = (440, 270) if large else (300, 190)
    axes = Axes(f"{title} by round", round_ticks(numbers), y_ticks or y_ticks_of(series, unit), unit, width, height)
    return Figure(title, line_chart(axes, series))


def y_ticks_of(series: Sequence[Series], unit: str = "") -> list[float]:
    """Round numbers around all values, within 0 and 1 for shares."""
    low, high = extent(series) or (0.0, 1.0)
    if unit == "%" and high - low < 0.02:  # differences below a point are no pattern
        low, high = low - 0.01, high + 0.01
    ticks = nice_ticks(low, high)
    return [tick for tick in ticks if 0 <= tick <= 1] if unit == "%" else ticks


def round_ticks(numbers: Sequence[int]) -> tuple[tuple[float, str], ...]:
    """`start` and the rounds' numbers; of many rounds only every second, fifth ..."""
    step = next(size for size in (1, 2, 5, 10, 20, 50, 100, 1000) if len(numbers) / size <= MOST_TICKS)
    return tuple((n, f"{n}" if n else "start") if n % step == 0 else (n, "") for n in numbers)


def arms_legend(run: Run) -> list[LegendEntry]:
    """Nothing for a single arm."""
    if not run.several:
        return []
    return [LegendEntry(legend_key(index), _arm_text(arm)) for index, arm in enumerate(run.arms)]


def _arm_text(arm: Arm) -> str:
    """The arm's name with what it is for."""
    meaning = {"oracle": "truth as judge, the upper bound", "random": "chance as judge, must not improve"}
    judge = str(arm.config.get("judge"))
    return f"{arm.name} ({meaning[judge]})" if judge in meaning else arm.name
