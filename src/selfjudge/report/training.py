"""Section 6: the course of training in every round, one after the other on the same axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from selfjudge.report.blocks import Block, Cell, Charts, Figure, LegendEntry, Section, Table, Text, number, percent
from selfjudge.report.charts import Axes, Point, Series, extent, legend_key, line_chart, nice_ticks
from selfjudge.report.loading import Arm, Round, Run
from selfjudge.store import Row

MOST_POINTS = 240
"""Per curve and arm; longer logs are averaged in equal stretches of steps."""
WHAT = (
    "The rounds stand one after the other, parted by lines. D = [log \u03c0(best) \u2212 log ref(best)] \u2212 "
    "[log \u03c0(worst) \u2212 log ref(worst)] in nats; its two brackets are the changes of best and worst. When both "
    "fall, probability leaves both responses for others."
)


SHARE = "Pairs in the right order"

Log = Sequence[tuple[Round, list[Row]]]


class Curve(NamedTuple):
    """A name in the log, its name in the legend, the kind of row it stands in."""

    column: str
    name: str
    kind: str = "step"


PANELS: dict[str, tuple[Curve, ...]] = {
    "Loss": (Curve("loss", "training"), Curve("eval_loss", "validation", "validation")),
    SHARE: (Curve("accuracy", "training"), Curve("eval_accuracy", "validation", "validation")),
    "Log-ratio difference D, nats": (Curve("log_ratio_difference", "training"),),
    "Change of log-probability, nats": (Curve("chosen_change", "best"), Curve("rejected_change", "worst")),
}


def section(run: Run) -> Section:
    """Four charts for each arm, and the last figures of each round."""
    logs = {arm.name: [(item, list(item.steps["training"].rows())) for item in arm.rounds[1:]] for arm in run.arms}
    if not any(rows for log in logs.values() for _, rows in log):
        return Section("training", "Training", [Text("No training log yet: no round has begun to train.", "gap")])
    blocks: list[Block] = [Text(WHAT)]
    for arm in run.arms:
        blocks.append(Charts(_figures(logs[arm.name]), _legend(), run.label(arm)))
    if not any(row["kind"] == "validation" for log in logs.values() for _, rows in log for row in rows):
        blocks.append(Text("No validation figures: no prompts were kept out of training (--validation).", "gap"))
    return Section("training", "Training", [*blocks, _table(run)])


class Layout(NamedTuple):
    """Where each round with a log begins, its middle, and where the last one ends, in steps."""

    starts: dict[int, float]
    middles: tuple[tuple[float, str], ...]
    end: float


def _layout(log: Log) -> Layout:
    starts: dict[int, float] = {}
    middles: list[tuple[float, str]] = []
    end = 0.0
    for item, rows in log:
        if rows:
            length = max(row["step"] for row in rows)
            starts[item.number] = end
            middles.append((end + length / 2, str(item.number)))
            end += length
    return Layout(starts, tuple(middles), max(end, 1.0))


def _figures(log: Log) -> list[Figure]:
    layout = _layout(log)
    return [_figure(title, curves, log, layout) for title, curves in PANELS.items()]


def _figure(title: str, curves: Sequence[Curve], log: Log, layout: Layout) -> Figure:
    series = [_series(curve, index, log, layout.starts) for index, curve in enumerate(curves)]
    unit = "%" if title == SHARE else ""
    ticks = (0.0, 0.25, 0.5, 0.75, 1.0) if unit else nice_ticks(*(extent(series) or (0.0, 1.0)))
    lines = tuple(layout.starts.values())[1:]
    axes = Axes(f"{title}, by round", layout.middles, ticks, unit, dividers=lines, x_low=0.0, x_high=layout.end)
    return Figure(title, line_chart(axes, series))


def _series(curve: Curve, style: int, log: Log, starts: dict[int, float]) -> Series:
    """The rounds' pieces with a gap between them."""
    points: list[Point] = []
    for item, rows in log:
        own = [row for row in rows if row["kind"] == curve.kind and row.get(curve.column) is not None]
        piece = [(starts[item.number] + row["step"], row["step"], row[curve.column]) for row in own]
        points += [_point(curve, item, *one) for one in _thinned(piece, MOST_POINTS // max(len(log), 1))]
        points.append(Point(0.0, None))
    validation = curve.kind == "validation"
    return Series(curve.name, tuple(points), style, line=not validation, marks=validation)


def _thinned(piece: list[tuple[float, int, float]], most: int) -> list[tuple[float, int, float]]:
    """Means over equal stretches where there are more than `most` steps."""
    size = -(-len(piece) // max(most, 1))
    stretches = [piece[start : start + size] for start in range(0, len(piece), size)] if size else []
    return [(one[-1][0], one[-1][1], sum(value for _, _, value in one) / len(one)) for one in stretches]


def _point(curve: Curve, item: Round, x: float, step: int, value: float) -> Point:
    return Point(x, value, tip=f"{curve.name}, {item.label}, step {step}: {number(value)}")


def _legend() -> list[LegendEntry]:
    return [
        LegendEntry(legend_key(0, marks=False), "training; change of best"),
        LegendEntry(legend_key(1, marks=False), "change of worst"),
        LegendEntry(legend_key(1, line=False), "validation"),
    ]


def _table(run: Run) -> Table:
    head = ["", "Steps", "First loss", "Last loss", "D", "Best", "Worst", "Validation loss", "Validation pairs %"]
    groups = [(run.label(arm), _rows(arm)) for arm in run.arms]
    return Table("The last figures of each round's training", head, groups, folded=True)


def _rows(arm: Arm) -> list[list[Cell]]:
    return [_row(item, item.steps["training"].summary) for item in arm.rounds[1:]]


def _row(item: Round, summary: dict[str, Any]) -> list[Cell]:
    names = ("steps", "first_loss", "last_loss", "log_ratio_difference", "chosen_change", "rejected_change")
    cells = [Cell(number(summary.get(name))) for name in names]
    validation = [number(summary.get("validation_loss")), percent(summary.get("validation_accuracy"))]
    return [Cell(item.label), *cells, *(Cell(text) for text in validation)]
