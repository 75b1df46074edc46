"""Section 5: what else changes with the rounds: lengths, variety, unfinished responses, the model's confidence."""

from __future__ import annotations

from selfjudge.report.accuracy import figure_of
from selfjudge.report.blocks import Block, Cell, Charts, Figure, LegendEntry, Section, Table, Text, number, percent
from selfjudge.report.charts import Series, legend_key
from selfjudge.report.curves import Getter, arms_legend, curve, panel, series_of, y_ticks_of
from selfjudge.report.loading import Arm, Round, Run
from selfjudge.report.observations import evaluated

WHAT = (
    "What may change besides quality. Lengths that grow, responses that no longer end, or samples that become all the "
    "same mean that the judge is being pleased by something else than better answers."
)
LENGTHS = {
    "all samples": ("samples", "mean_tokens"),
    "best": ("selected", "mean_tokens_best"),
    "worst": ("selected", "mean_tokens_worst"),
}


def section(run: Run) -> Section:
    """Lengths for each arm, then one chart for each other figure."""
    steps = [item.steps[name] for arm in run.arms for item in arm.rounds[1:] for name in ("samples", "selected")]
    if not any(step.state == "done" for step in steps):
        return Section("drift", "Drift", [Text("Nothing to show yet: no round has finished sampling.", "gap")])
    blocks: list[Block] = [Text(WHAT), _lengths(run), Charts(_others(run), arms_legend(run)), _table(run)]
    return Section("drift", "Drift", blocks)


def summary_of(step: str, name: str) -> Getter:
    """A figure of a step's summary, None where the round does not have it."""
    return lambda _, item: item.steps[step].summary.get(name)


def _lengths(run: Run) -> Charts:
    """One chart per arm: all samples, best, worst."""
    series = {arm.name: _length_curves(arm) for arm in run.arms}
    ticks = y_ticks_of([one for group in series.values() for one in group])
    figures = [panel(_arm_title(run, name), group, y_ticks=ticks) for name, group in series.items()]
    legend = [LegendEntry(legend_key(index), name) for index, name in enumerate(LENGTHS)]
    return Charts(figures, legend, "Mean response length, tokens")


def _length_curves(arm: Arm) -> list[Series]:
    places = enumerate(LENGTHS.items())
    return [curve(arm, summary_of(*place), index, name, first=1) for index, (name, place) in places]


def _arm_title(run: Run, name: str) -> str:
    return name if run.several else "Mean tokens"


def _others(run: Run) -> list[Figure]:
    unfinished, distinct = (
        series_of(run, summary_of("samples", name), "%", 1) for name in ("unfinished_share", "distinct_share")
    )
    mass, p_yes = (series_of(run, figure_of(name), "%") for name in ("label_mass", "self_p_yes"))
    return [
        panel("Samples that hit the token limit", unfinished, "%"),
        panel("Distinct responses among the samples", distinct, "%"),
        panel("Label mass on evaluated samples", mass, "%"),
        panel("Self-judged P(Yes), no proof of progress", p_yes, "%"),
    ]


def _table(run: Run) -> Table:
    head = ["", "Tokens", "Best", "Worst", "Evaluated", "Hit the limit %", "Distinct %", "Label mass %", "P(Yes) %"]
    groups = [(run.label(arm), _rows(arm)) for arm in run.arms]
    caption = "Drift: tokens, limit and variety of the rounds' samples; label mass and P(Yes) of the evaluated ones"
    return Table(caption, head, groups, folded=True)


def _rows(arm: Arm) -> list[list[Cell]]:
    return [[Cell(item.label), *(Cell(text) for text in _figures(item))] for item in arm.rounds]


def _figures(item: Round) -> list[str]:
    lengths = [number(_of(item, *place)) for place in LENGTHS.values()]
    shares = [percent(_of(item, "samples", name)) for name in ("unfinished_share", "distinct_share")]
    own = [percent(evaluated(item, "label_mass"), 2), percent(evaluated(item, "self_p_yes"))]
    return [*lengths, number(evaluated(item, "mean_tokens")), *shares, *own]


def _of(item: Round, step: str, name: str) -> float | None:
    return item.steps[step].summary.get(name) if step in item.steps else None
