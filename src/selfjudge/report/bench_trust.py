"""How far the scores can be trusted: calibration with its reliability diagrams; bias by length and by position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfjudge.report.bench_figures import estimate_at
from selfjudge.report.bench_runs import Bench, BenchRun
from selfjudge.report.blocks import (
    MISSING,
    Block,
    Cell,
    Charts,
    Figure,
    Section,
    Table,
    Text,
    estimate,
    number,
    percent,
)
from selfjudge.report.charts import Axes, ReliabilityBin, reliability_chart

Figures = dict[str, Any]

CALIBRATION = (
    "The scores are made probabilities by p = sigmoid(difference / T) and compared with how often they come true: on "
    "the diagonal a judge that says 80 % is right in 80 % of the cases. T = 1 is the score as it is; the other T is "
    "fitted on one half of the prompts and checked on the other half, so both diagrams are of the same pairs. ECE is "
    "the mean distance from the diagonal, weighted by the counts below each diagram. Single responses: sigmoid(score) "
    "of every response beside whether it is right, where a score says that by itself."
)
BIAS = (
    "A judge without a bias for length prefers the longer response about as often as it is the right one, and is as "
    "often right where the right response is the shorter. Flips: the verdict is turned round when the two responses "
    "change places; shown first: verdicts for the response in front, 50 % without a bias."
)
DIAGRAMS = {"before": "as it is", "after": "with T", "pointwise": "single responses"}
LENGTH = {
    "longer_preferred": "Longer preferred %",
    "longer_right": "Longer is right %",
    "accuracy_right_longer": "Accuracy, right is longer %",
    "accuracy_right_shorter": "Accuracy, right is shorter %",
    "accuracy_equal_length": "Accuracy, as long %",
}
POSITION = {"position_flips": "Flips %", "first_preferred": "Shown first preferred %"}
UNFOLDED = 4
"""Runs whose diagrams are open from the start."""


def calibration(bench: Bench) -> Section:
    """Diagrams of each run before and after the temperature, and the figures of all."""
    known = [run for run in bench.runs if _part(run, "calibration")]
    blocks = _gaps(bench, "calibration", "calibration")
    if known:
        blocks = [Text(CALIBRATION), *blocks, _calibration_table(bench), *_diagrams(known)]
    return Section("calibration", "Calibration", blocks)


def bias(bench: Bench) -> Section:
    """One table over all runs."""
    known = [run for run in bench.runs if _part(run, "bias")]
    blocks = _gaps(bench, "bias", "figures of bias")
    if known:
        blocks = [Text(BIAS), *blocks, _bias_table(bench), *_no_positions(known)]
    return Section("bias", "Length and position", blocks)


def _part(run: BenchRun, name: str) -> Figures:
    found = run.figures.get(name)
    return found if isinstance(found, dict) else {}


def _gaps(bench: Bench, key: str, what: str) -> list[Block]:
    """Which runs lack the figures, and why."""
    without = [run.name for run in bench.runs if run.figures and not _part(run, key)]
    if not any(run.figures for run in bench.runs):
        return [Text(f"No {what} yet: no run is finished.", "gap")]
    if not without:
        return []
    why = "these results hold none; the same bench command computes all figures again from the judged rows"
    return [Text(f"No {what} of {', '.join(without)}: {why}.", "gap")]


# Calibration


def _calibration_table(bench: Bench) -> Table:
    head = ["", "T", "Pairs fitted", "Checked", "ECE %", "ECE with T %", "Brier", "Brier with T", "Log loss, nats"]
    groups = [
        (group.label, [_calibration_row(run) for run in group.runs if _part(run, "calibration")])
        for group in bench.groups
    ]
    caption = "Calibration of the pairs, as the scores are and with T"
    return Table(caption, [*head, "Log loss with T", "Remark"], [group for group in groups if group[1]], prose=True)


def _calibration_row(run: BenchRun) -> list[Cell]:
    found = _part(run, "calibration")
    before, after = found.get("before") or {}, found.get("after") or {}
    counts = [number(found.get(name)) for name in ("temperature", "fitted_pairs", "checked_pairs")]
    errors = [percent(one.get("ece")) for one in (before, after)]
    losses = [number(one.get(name)) for name in ("brier", "log_loss") for one in (before, after)]
    return [Cell(run.name), *(Cell(text) for text in (*counts, *errors, *losses, found.get("reason") or ""))]


def _diagrams(runs: Sequence[BenchRun]) -> list[Block]:
    blocks: list[Block] = []
    for place, run in enumerate(runs):
        found = _part(run, "calibration")
        figures = [_diagram(run, name, found[name]) for name in DIAGRAMS if (found.get(name) or {}).get("bins")]
        if figures:
            blocks.append(Charts(figures, (), f"{run.name}: predicted and true", folded=place >= UNFOLDED))
    return blocks


def _diagram(run: BenchRun, name: str, found: Figures) -> Figure:
    bins = [_bin(one, "responses" if name == "pointwise" else "pairs") for one in found["bins"]]
    low = min(one.low for one in bins)
    ticks = [low + (1.0 - low) * part / 5 for part in range(6)] if low else [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    x_ticks = tuple((tick, f"{100 * tick:.0f}\u202f%") for tick in ticks)
    title = f"{run.name}, {DIAGRAMS[name]}: share right by predicted probability"
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    axes = Axes(title, x_ticks, shares, "%", width=300, height=220, x_low=low, x_high=1.0)
    temperature = _part(run, "calibration").get("temperature")
    named = f"with T = {number(temperature)}" if name == "after" else DIAGRAMS[name]
    return Figure(f"{named[0].upper()}{named[1:]}, ECE {percent(found.get('ece'))} %", reliability_chart(axes, bins))


def _bin(found: Figures, what: str) -> ReliabilityBin:
    predicted, right = found.get("predicted"), found.get("right")
    tip = f"{found['n']} {what} from {percent(found['low'], 0)} to {percent(found['high'], 0)} %"
    if found["n"]:
        tip += f": predicted {percent(predicted)} %, right {percent(right)} %"
    return ReliabilityBin(found["low"], found["high"], found["n"], predicted, right, tip)


# Bias


def _bias_table(bench: Bench) -> Table:
    groups = [(group.label, [_bias_row(run) for run in group.runs if _part(run, "bias")]) for group in bench.groups]
    head = ["", *LENGTH.values(), *POSITION.values()]
    return Table("Bias, with 95 % intervals", head, [group for group in groups if group[1]])


def _bias_row(run: BenchRun) -> list[Cell]:
    found = _part(run, "bias")
    parts = [(found.get("length") or {}, LENGTH), (found.get("position") or {}, POSITION)]
    return [Cell(run.name), *(_share(part, name) for part, names in parts for name in names)]


def _share(found: Figures, name: str) -> Cell:
    return estimate(estimate_at(found, (name,))._asdict(), percent) if name in found else Cell(MISSING)


def _no_positions(runs: Sequence[BenchRun]) -> list[Block]:
    without = [run.name for run in runs if not _part(run, "bias").get("position")]
    if not without:
        return []
    return [
        Text(f"No figures of position for {', '.join(without)}: no two responses were shown in both orders.", "note")
    ]
