"""The first section of the page of benchmark runs: who prefers the right responses how often, best first."""

from __future__ import annotations

from selfjudge.report.bench_figures import MAIN, Estimate, Figures, estimate_at, known_number
from selfjudge.report.bench_runs import Bench, BenchRun, Group
from selfjudge.report.blocks import Block, Cell, Section, Table, Text, estimate, number, percent
from selfjudge.report.charts import interval_strip

WHAT = (
    "Runs over the same rows stand together, best first. The bars are 95 % bootstrap intervals over prompts on one "
    "scale; the dashed line is 50 %, chance for a pair. Strict: over all pairs, ties and missing scores are lost. "
    "Label mass is the probability on all label tokens together; far below 100 % the scores are noise."
)
HEAD = (
    "Run",
    "Accuracy %",
    "",
    "Model",
    "Judge",
    "n",
    "Pairs",
    "Ties",
    "Strict %",
    "Not scored",
    "Cut %",
    "Label mass %",
)
CHANCE = 0.5


def section(bench: Bench) -> Section:
    """One table with a group of rows per benchmark; what is unfinished is said before it."""
    unfinished = [run for run in bench.runs if run.problem]
    blocks: list[Block] = []
    if unfinished:
        lines = "; ".join(f"{run.name} ({run.problem.removeprefix('unfinished: ')})" for run in unfinished)
        blocks.append(Text(f"Unfinished: {lines}.", "alarm"))
    return Section("leaderboard", "Leaderboard", [*blocks, Text(WHAT), _table(bench)])


def _table(bench: Bench) -> Table:
    mains = {run.name: estimate_at(run.figures, group.main) for group in bench.groups for run in group.runs}
    known = [value for main in mains.values() for value in (main.value, main.low) if value is not None]
    low = min([0.45, *known])
    groups = [(_group_title(group), [_row(run, mains[run.name], low) for run in group.runs]) for group in bench.groups]
    return Table("All runs, with 95 % intervals", HEAD, groups, names=(0, 3, 4))


def _group_title(group: Group) -> str:
    """What is ranked by, in the words of the figure; said where that is not the benchmark's own."""
    if not group.done:
        return f"{group.label}: no run is finished"
    without = group.main == ("judge_accuracy",) and any("overall" in run.figures for run in group.done)
    return f"{group.label}: {MAIN[group.main]}" + (" (no overall figure: the rows are not complete)" if without else "")


def _row(run: BenchRun, main: Estimate, low: float) -> list[Cell]:
    figures = run.figures
    pairs, ties, missing = (number(known_number(figures.get(name))) for name in ("pairs", "ties", "missing"))
    strict = percent(known_number(figures.get("judge_strict")))
    mass = percent(known_number(figures.get("mean_label_mass")), 2)
    name = Cell(run.name, "unfinished" if run.problem else "")
    texts = (run.model or "none", run.judge, number(main.n), pairs, ties, strict, missing, _cut(figures), mass)
    return [name, estimate(main._asdict(), percent), _strip(run, main, low), *map(Cell, texts)]


def _strip(run: BenchRun, main: Estimate, low: float) -> Cell:
    """The interval as a bar; nothing where there is none."""
    if main.value is None:
        return Cell("")
    interval = "" if main.low is None else f" (95 % interval {percent(main.low)} to {percent(main.high)} %)"
    tip = f"{run.name}: {percent(main.value)} %{interval}"
    return Cell("", mark=interval_strip((main.value, main.low, main.high), (low, 1.0), CHANCE, tip))


def _cut(figures: Figures) -> str:
    """Share of the responses that were cut; missing where nothing was judged."""
    cut, responses = (known_number(figures.get(name)) for name in ("truncated", "responses"))
    return percent(None if cut is None or not responses else cut / responses)
