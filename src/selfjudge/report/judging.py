"""Section 3: can the judge be trusted? Its accuracy on labelled responses, label mass, and what it could not score."""

from __future__ import annotations

from typing import Any

from selfjudge.report.accuracy import figure_of
from selfjudge.report.blocks import MISSING, Block, Cell, Charts, Section, Table, Text, estimate, number, percent
from selfjudge.report.curves import arms_legend, panel, series_of, y_ticks_of
from selfjudge.report.loading import Round, Run
from selfjudge.report.observations import evaluated

WHAT = (
    "How often the model, asked Yes or No, gives the right response of a labelled pair the higher log-odds (a tie "
    "counts half). In every arm this is the trained model's own yes-no judge, whichever judge picked the pairs."
)
NO_LABELS = (
    "No judge accuracy: the evaluated rows come without labelled right and wrong responses. Give --benchmark with "
    "responses whose right ones are known to measure the judge."
)
LABEL_MASS = (
    "Label mass is the probability that the model puts on all Yes and No tokens together; far below 100 % the log-odds "
    "are noise. Cut: the middle of the response was left out to fit the context. Not scored: no log-odds at all."
)
PREFIX = "judge_accuracy_"
IN_PLACE = (
    "These scores were read in place, from the cache that sampling built. The first prompts of each round were judged "
    "with the separate question too: where the two disagree, trust the one whose best response is right more often."
)
AGREEMENT = {
    "Kendall's tau": ("kendall_tau", number),
    "Same best %": ("same_best", percent),
    "Best right in place %": ("best_right_in_place", percent),
    "Best right separately %": ("best_right_separate", percent),
}
"""Head of a column -> its figure in a step's `agreement`, and how it is written."""


def section(run: Run) -> Section:
    """Accuracy overall and by kind of wrong response; then what the judge of the rounds saw."""
    kinds = _kinds(run)
    blocks: list[Block] = []
    if any(evaluated(item, "judge_accuracy") for arm in run.arms for item in arm.rounds):
        blocks += [Text(WHAT), _charts(run, kinds), _table(run, kinds)]
    elif any(item.steps["evaluation"].state == "done" for arm in run.arms for item in arm.rounds):
        blocks.append(Text(NO_LABELS, "gap"))
    else:
        blocks.append(Text("No judge accuracy yet: no evaluation is finished.", "gap"))
    return Section("judge", "The judge", [*blocks, *_scoring(run), *_agreement(run)])


def _kinds(run: Run) -> list[str]:
    summaries = [item.steps["evaluation"].summary for arm in run.arms for item in arm.rounds]
    return sorted({name.removeprefix(PREFIX) for summary in summaries for name in summary if name.startswith(PREFIX)})


def _charts(run: Run, kinds: list[str]) -> Charts:
    names = {"All pairs": "judge_accuracy"} | {f"Against: {kind}": PREFIX + kind for kind in kinds}
    series = {title: series_of(run, figure_of(name), "%") for title, name in names.items()}
    ticks = y_ticks_of([one for group in series.values() for one in group], "%")
    figures = [panel(title, group, "%", ticks) for title, group in series.items()]
    return Charts(figures, arms_legend(run), "Judge accuracy" + (" by kind of wrong response" if kinds else ""))


def _table(run: Run, kinds: list[str]) -> Table:
    head = ["", "Judge accuracy %", *(f"Against {kind} %" for kind in kinds), "Strict %", "Pairs", "Ties"]
    groups = [(run.label(arm), [_row(item, kinds) for item in arm.rounds]) for arm in run.arms]
    return Table("Judge accuracy, 95 % intervals; strict: ties and missing scores are lost", head, groups, folded=True)


def _row(item: Round, kinds: list[str]) -> list[Cell]:
    names = ["judge_accuracy", *(PREFIX + kind for kind in kinds)]
    accuracies = [estimate(evaluated(item, name), percent) for name in names]
    counts = [Cell(number(evaluated(item, name))) for name in ("pairs", "ties")]
    return [Cell(item.label), *accuracies, Cell(percent(evaluated(item, "judge_strict"))), *counts]


def _scoring(run: Run) -> list[Block]:
    """What the judges that ask the model saw of the rounds' samples."""
    asked = [arm for arm in run.arms if not arm.is_control]
    done = [arm for arm in asked if any(item.steps["scored"].state == "done" for item in arm.rounds[1:])]
    if asked and not done:
        return [Text("No figures of the judged samples: no round has finished judging.", "gap")]
    controls = [arm.name for arm in run.arms if arm.is_control]
    note = f" Judges that ask no model ({', '.join(controls)}) have no label mass and are left out." if controls else ""
    head = ["", "Label mass %", "Cut %", "Not scored %", "Responses"]
    groups = [(run.label(arm), [_scoring_row(item) for item in arm.rounds[1:]]) for arm in done]
    table = Table("The samples of each round, as the judge saw them", head, groups)
    return [Text(LABEL_MASS + note), *([table] if done else [])]


def _scoring_row(item: Round) -> list[Cell]:
    summary = item.steps["scored"].summary
    mass = Cell(percent(summary.get("mean_label_mass"), 2))
    shares = [Cell(percent(share(summary, name))) for name in ("truncated", "missing")]
    return [Cell(item.label), mass, *shares, Cell(number(summary.get("responses")))]


def _agreement(run: Run) -> list[Block]:
    """How far scores in place agree with the separate question, where a round has both."""
    groups = [(run.label(arm), [_agreement_row(item) for item in arm.rounds[1:]]) for arm in run.arms]
    known = [(label, rows) for label, rows in groups if any(cell.text != MISSING for row in rows for cell in row[1:])]
    if not known:
        return []
    caption = "In place against the separate question, with 95 % intervals"
    return [Text(IN_PLACE), Table(caption, ["", *AGREEMENT], known)]


def _agreement_row(item: Round) -> list[Cell]:
    steps = [item.steps[name].summary for name in ("samples", "scored")]
    found = next((summary["agreement"] for summary in steps if "agreement" in summary), {})
    return [Cell(item.label), *(estimate(found.get(name), write) for name, write in AGREEMENT.values())]


def share(summary: dict[str, Any], name: str) -> float | None:
    """Of the responses; None where nothing was judged."""
    return summary[name] / summary["responses"] if summary.get("responses") else None
