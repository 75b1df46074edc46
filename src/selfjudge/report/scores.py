"""Section 4: the scores of each round, the margin between best and worst, and its alarm."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace

from selfjudge.alarms import MARGIN_FALL
from selfjudge.report.blocks import (
    Block,
    Cell,
    Charts,
    Figure,
    LegendEntry,
    Section,
    Table,
    Text,
    estimate,
    number,
    percent,
)
from selfjudge.report.charts import Axes, Bin, bins_of, histogram, nice_ticks, swatch
from selfjudge.report.curves import arms_legend, panel, series_of
from selfjudge.report.loading import Arm, Run
from selfjudge.report.observations import (
    Observations,
    margin_change,
    mean,
    mean_with_interval,
)

SHOWN_ROUNDS = 6
WHAT = (
    "Scores of all samples (of the yes-no judge: log-odds in nats), and the margin s(best) \u2212 s(worst) of the "
    "pairs picked from them. A judge that teaches itself is over-optimised after some rounds: the best responses "
    "become more and more often its rare errors. The sign that needs no label is a mean margin more than "
    f"{MARGIN_FALL * 100:.0f} % below that of round 1."
)
NO_TRUTH = "Whether the best responses are truly right is not known: no prompt has a reference answer."


def section(run: Run, seen: Observations) -> Section:
    """Margins and truth by round first, then the histograms."""
    if not any(one.has_scores for one in seen.values()):
        gap = Text("No scores yet: no round has finished judging its samples.", "gap")
        return Section("scores", "Scores", [gap])
    blocks: list[Block] = [*_alarms(run, seen), Text(WHAT), *_margins(run, seen), _table(run, seen)]
    histograms = [_histograms(arm, seen, run.several) for arm in run.arms]
    return Section("scores", "Scores", blocks + [block for group in histograms for block in group])


def _alarms(run: Run, seen: Observations) -> list[Block]:
    return [text for arm in run.arms for text in (*_alarm(arm, seen, run.several), *_others(arm, run.several))]


def _others(arm: Arm, named: bool) -> list[Text]:
    """The alarms that the run itself recorded, but for the margin's, which is made from the rows."""
    label = f" ({arm.name})" if named else ""
    return [
        Text(f"Alarm{label} in {item.label}: {words}.", "alarm")
        for item in arm.rounds
        for name, words in item.alarms.items()
        if name != "margin"
    ]


def _alarm(arm: Arm, seen: Observations, named: bool) -> list[Text]:
    """The alarm, the all-clear, or nothing where there is no later round to compare."""
    own = {number: one for (name, number), one in seen.items() if name == arm.name}
    change = margin_change(arm, own)
    if change is None:
        return []
    label = f" ({arm.name})" if named else ""
    course = f"{number(change.first)} \u2192 {number(change.last)} in round {change.round}"
    if not change.is_alarm:
        return [Text(f"No alarm{label}: the mean margin went {course}.")]
    return [
        Text(
            f"Alarm{label}: the mean margin fell by more than {MARGIN_FALL * 100:.0f} % from round 1, {course} "
            f"(\u2212{percent(change.fall)} %). A sign of over-optimisation: read the best responses in the table "
            "below, and try fewer rounds, --agreement or --loss irepo.",
            "alarm",
        )
    ]


def _margins(run: Run, seen: Observations) -> list[Block]:
    margins = series_of(run, lambda arm, item: mean_with_interval(seen[arm.name, item.number].margins), first=1)
    figures = [panel("Mean margin", margins)]
    gaps: list[Block] = []
    if any(one.best_right for one in seen.values()):
        right = series_of(run, lambda arm, item: mean_with_interval(seen[arm.name, item.number].best_right), "%", 1)
        figures.append(panel("Best response truly right", right, "%"))
    else:
        gaps.append(Text(NO_TRUTH, "gap"))
    return [Charts(figures, arms_legend(run)), *gaps]


def _table(run: Run, seen: Observations) -> Table:
    head = ["", "Prompts with a pair", "Mean margin", "Best truly right %", "Mean score", "No pair because"]
    groups = [(run.label(arm), _rows(arm, seen)) for arm in run.arms]
    return Table("Pairs picked in each round, with 95 % intervals", head, groups, prose=True)


def _rows(arm: Arm, seen: Observations) -> list[list[Cell]]:
    return [
        [
            Cell(item.label),
            Cell(number(item.steps["selected"].summary.get("prompts"))),
            estimate(mean_with_interval(seen[arm.name, item.number].margins), number),
            estimate(mean_with_interval(seen[arm.name, item.number].best_right), percent),
            Cell(number(item.steps["scored"].summary.get("mean_score"))),
            Cell(_dropped(item.steps["selected"].summary)),
        ]
        for item in arm.rounds[1:]
    ]


def _dropped(summary: dict[str, dict[str, int]]) -> str:
    if "dropped" not in summary:
        return number(None)
    return "; ".join(f"{reason}: {count}" for reason, count in summary["dropped"].items()) or "none"


# Histograms


def _histograms(arm: Arm, seen: Observations, named: bool) -> list[Block]:
    """Two rows of small multiples, one panel a round, on the same axes."""
    observed = {item.number: seen[arm.name, item.number] for item in arm.rounds[1:]}
    shown = _spread([number for number, one in observed.items() if one.has_scores])
    if not shown:
        return []
    some = {number: observed[number] for number in shown}
    left_out = len(shown) < sum(one.has_scores for one in observed.values())
    note = "Of many rounds, the first, the last and some between." if left_out else ""
    kinds = [kind for kind in ("right", "wrong", "unknown") if any(getattr(one, kind) for one in some.values())]
    values = {number: [getattr(one, kind) for kind in kinds] for number, one in some.items()}
    title = _title(named, arm, "Scores of the samples")
    blocks: list[Block] = [Charts(_row(values, kinds), _legend(kinds), title, note, folded=arm.is_control)]
    margins = {number: [one.margins] for number, one in some.items() if one.margins}
    if margins:
        title = _title(named, arm, "Margin best \u2212 worst of the pairs")
        blocks.append(Charts(_row(margins, ["pairs"]), (), title, note, folded=arm.is_control))
    return blocks


def _title(named: bool, arm: Arm, text: str) -> str:
    return f"{arm.name}: {text[0].lower()}{text[1:]}" if named else text


def _spread(numbers: Sequence[int]) -> list[int]:
    """At most SHOWN_ROUNDS of them, evenly spread, ends included."""
    if len(numbers) <= SHOWN_ROUNDS:
        return list(numbers)
    last = len(numbers) - 1
    return [numbers[round(index * last / (SHOWN_ROUNDS - 1))] for index in range(SHOWN_ROUNDS)]


def _row(values: dict[int, list[array[float]]], kinds: list[str]) -> list[Figure]:
    """Panels with common axes."""
    given = [group for groups in values.values() for group in groups if group]
    ticks = nice_ticks(min(map(min, given)), max(map(max, given)))
    low, high = ticks[0], ticks[-1]
    bins = {number: bins_of(groups, low, high) for number, groups in values.items()}
    top = max(sum(one.counts) for row in bins.values() for one in row)
    x_ticks = tuple((tick, f"{tick:g}".replace("-", "\u2212")) for tick in ticks)
    axes = Axes("Histogram", x_ticks, nice_ticks(0, top, 3), height=150, x_low=low, x_high=high)
    return [
        _histogram(replace(axes, title=f"Histogram, round {place}"), place, groups, bins[place], kinds)
        for place, groups in values.items()
    ]


def _histogram(axes: Axes, place: int, groups: list[array[float]], bins: list[Bin], kinds: list[str]) -> Figure:
    average = mean(sum(groups, array("d")))
    return Figure(f"round {place}, mean {number(average)}", histogram(axes, bins, kinds, average))


def _legend(kinds: list[str]) -> list[LegendEntry]:
    meaning = {"right": "truly right", "wrong": "truly wrong", "unknown": "no reference answer"}
    return [LegendEntry(swatch(kind), meaning[kind]) for kind in kinds]
