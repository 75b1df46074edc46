"""Section 6: the course of training in every round, one after the other on the same axis."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from statistics import fmean
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
    "fall, probability leaves both responses for others. Forward KL is the mean of log ref \u2212 log \u03c0 over the "
    "responses trained on: a distance from the reference that can be compared between steps, not an unbiased "
    "estimate, as the responses are selected. A correlation is missing where D or the target z does not vary, as at "
    "the first step. Many clipped targets mean that all of them ask for the same."
)


SHARE = "Pairs in the right order"
CLIPPED = "Clipped targets"


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
    "Log-probability, nats": (Curve("chosen_logp", "best"), Curve("rejected_logp", "worst")),
    "Forward KL, nats": (Curve("forward_kl", "training"), Curve("eval_forward_kl", "validation", "validation")),
    "Correlation of D with z": (Curve("target_correlation", "training"),),
    "Gradient norm before clipping": (Curve("grad_norm", "training"),),
    CLIPPED: (Curve("clipped_share", "training"),),
}
SHARES = (SHARE, CLIPPED)


class RoundLog:
    """The steps and values of a round's curves, 16 bytes a point."""

    def __init__(self, item: Round) -> None:
        self.round = item
        self.last_step = 0
        self.validated = False
        self.points = {curve: (array("Q"), array("d")) for curves in PANELS.values() for curve in curves}
        for row in item.steps["training"].rows():
            self._add(row)

    def _add(self, row: Row) -> None:
        self.last_step = max(self.last_step, row["step"])
        self.validated |= row["kind"] == "validation"
        for curve, (steps, values) in self.points.items():
            if row["kind"] == curve.kind and row.get(curve.column) is not None:
                steps.append(row["step"])
                values.append(row[curve.column])


Log = Sequence[RoundLog]


def section(run: Run) -> Section:
    """The charts of each arm, and the last figures of each round."""
    logs = {arm.name: [RoundLog(item) for item in arm.rounds[1:]] for arm in run.arms}
    if not any(one.last_step for log in logs.values() for one in log):
        return Section("training", "Training", [Text("No training log yet: no round has begun to train.", "gap")])
    blocks: list[Block] = [Text(WHAT)]
    for arm in run.arms:
        blocks.append(Charts(_figures(logs[arm.name]), _legend(), run.label(arm)))
    if not any(one.validated for log in logs.values() for one in log):
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
    for one in log:
        if one.last_step:
            starts[one.round.number] = end
            middles.append((end + one.last_step / 2, str(one.round.number)))
            end += one.last_step
    return Layout(starts, tuple(middles), max(end, 1.0))


def _figures(log: Log) -> list[Figure]:
    layout = _layout(log)
    logged = {curve for one in log for curve, (steps, _) in one.points.items() if steps}
    return [_figure(title, curves, log, layout) for title, curves in PANELS.items() if logged & {*curves}]


def _figure(title: str, curves: Sequence[Curve], log: Log, layout: Layout) -> Figure:
    series = [_series(curve, index, log, layout.starts) for index, curve in enumerate(curves)]
    unit = "%" if title in SHARES else ""
    ticks = (0.0, 0.25, 0.5, 0.75, 1.0) if unit else nice_ticks(*(extent(series) or (0.0, 1.0)))
    lines = tuple(layout.starts.values())[1:]
    axes = Axes(f"{title}, by round", layout.middles, ticks, unit, dividers=lines, x_low=0.0, x_high=layout.end)
    return Figure(title, line_chart(axes, series))


def _series(curve: Curve, style: int, log: Log, starts: dict[int, float]) -> Series:
    """The rounds' pieces with a gap between them."""
    points: list[Point] = []
    for one in log:
        thinned = _thinned(*one.points[curve], MOST_POINTS // max(len(log), 1))
        begin = starts.get(one.round.number, 0.0)
        points += [_point(curve, one.round, begin + step, step, value) for step, value in thinned]
        points.append(Point(0.0, None))
    validation = curve.kind == "validation"
    return Series(curve.name, tuple(points), style, line=not validation, marks=validation)


def _thinned(steps: Sequence[int], values: Sequence[float], most: int) -> list[tuple[int, float]]:
    """Means over equal stretches where there are more than `most` steps, each at its last step."""
    size = max(1, -(-len(steps) // max(most, 1)))
    starts = range(0, len(steps), size)
    return [(steps[min(start + size, len(steps)) - 1], fmean(values[start : start + size])) for start in starts]


def _point(curve: Curve, item: Round, x: float, step: int, value: float) -> Point:
    return Point(x, value, tip=f"{curve.name}, {item.label}, step {step}: {number(value)}")


def _legend() -> list[LegendEntry]:
    return [
        LegendEntry(legend_key(0, marks=False), "training; change of best"),
        LegendEntry(legend_key(1, marks=False), "change of worst"),
        LegendEntry(legend_key(1, line=False), "validation"),
    ]


def _table(run: Run) -> Table:
    head = ["", "Steps", "First loss", "Last loss", "D", "Best", "Worst", "Forward KL", "Correlation", "Gradient norm"]
    head += ["Clipped %", "Validation loss", "Validation pairs %", "Stopped at", "Best step"]
    groups = [(run.label(arm), _rows(arm)) for arm in run.arms]
    return Table("The last figures of each round's training", head, groups, folded=True)


def _rows(arm: Arm) -> list[list[Cell]]:
    return [_row(item, item.steps["training"].summary) for item in arm.rounds[1:]]


def _row(item: Round, summary: dict[str, Any]) -> list[Cell]:
    names = ("steps", "first_loss", "last_loss", "log_ratio_difference", "chosen_change", "rejected_change")
    names += ("forward_kl", "target_correlation", "grad_norm")
    cells = [number(summary.get(name)) for name in names] + [percent(summary.get("clipped_share"))]
    cells += [number(summary.get("validation_loss")), percent(summary.get("validation_accuracy"))]
    cells += [number(summary.get(name)) for name in ("stopped_at_step", "best_step")]
    return [Cell(item.label), *map(Cell, cells)]
