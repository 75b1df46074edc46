"""Section 2: are the answers better? Sampled accuracy where the truth is known, the model's own opinion where not."""

from __future__ import annotations

from collections.abc import Sequence

from selfjudge.report.blocks import Block, Cell, Charts, Section, Table, Text, estimate, number, percent
from selfjudge.report.curves import Getter, arms_legend, panel, series_of, y_ticks_of
from selfjudge.report.loading import Arm, Round, Run
from selfjudge.report.observations import categories, evaluated, has_truth, last_evaluated, sampled_gain

WHY_SAMPLED = (
    "Sampled accuracy is the headline: the share of answers, drawn as they are in use, that equal the reference. "
    "Greedy accuracy looks only at the most probable answer, so a small shift of probability flips it; it exaggerates "
    "what training changed and stands beside it for comparison. Bars are 95 % bootstrap intervals over questions."
)
NO_TRUTH = (
    'No accuracy: none of the evaluated rows has a reference answer (the field "reference"), so nothing here can '
    "show that answers became better. Give --benchmark with reference answers to measure that."
)
OWN_OPINION = (
    "What follows is the model's opinion of its own samples. It is no proof of improvement: the score is the one the "
    "training raises, and it keeps rising when true quality falls."
)


def section(run: Run) -> Section:
    """Accuracy with reference answers, else the self-judged scores."""
    if not any(item.steps["evaluation"].state == "done" for arm in run.arms for item in arm.rounds):
        gap = Text("No accuracy yet: no evaluation is finished, not even that of the start.", "gap")
        return Section("accuracy", "Accuracy", [gap])
    blocks = _with_truth(run) if has_truth(run) else _without_truth(run)
    return Section("accuracy", "Accuracy", blocks)


def figure_of(name: str, category: str | None = None) -> Getter:
    """A figure of the evaluation, as series want it."""
    return lambda _, item: evaluated(item, name, category)


def _with_truth(run: Run) -> list[Block]:
    sampled, greedy = (series_of(run, figure_of(name), "%") for name in ("sampled", "greedy"))
    ticks = y_ticks_of(sampled + greedy, "%")
    headline = [
        panel("Sampled accuracy (headline)", sampled, "%", ticks, large=True),
        panel("Greedy accuracy", greedy, "%", ticks, large=True),
    ]
    blocks: list[Block] = [Text(line, "lead") for line in _sentences(run)]
    blocks += [Text(WHY_SAMPLED), Charts(headline, arms_legend(run), size="large"), _table(run)]
    return blocks + _by_category(run)


def _sentences(run: Run) -> list[str]:
    """One per arm: from the start to the last evaluated round."""
    return [sentence for arm in run.arms if (sentence := _sentence(arm, run.several))]


def _sentence(arm: Arm, named: bool) -> str:
    last, gain = last_evaluated(arm), sampled_gain(arm)
    before = evaluated(arm.rounds[0], "sampled")
    after = None if last is None else evaluated(last, "sampled")
    if last is None or before is None or after is None or gain is None:
        return ""
    start, end = percent(before["value"]), percent(after["value"])
    change, low, high = (_signed(value) for value in (gain.estimate, gain.low, gain.high))
    clear = "" if gain.low > 0 or gain.high < 0 else ", which includes 0"
    label = f"{arm.name}: s" if named else "S"
    return (
        f"{label}ampled accuracy {start} % \u2192 {end} % after round {last.number}; paired change {change} points "
        f"[{low}, {high}]{clear}."
    )


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + percent(value)


def _table(run: Run) -> Table:
    head = ["", "Sampled %", "Greedy %", "Any sample right %", "Questions"]
    groups = [(run.label(arm), [_row(item) for item in arm.rounds]) for arm in run.arms]
    return Table("Accuracy with 95 % intervals", head, groups)


def _row(item: Round) -> list[Cell]:
    figures = [estimate(evaluated(item, name), percent) for name in ("sampled", "greedy", "any_right")]
    return [Cell(item.label), *figures, Cell(_questions(item))]


def _questions(item: Round) -> str:
    """How many; of how many where some have no reference."""
    total, sampled = evaluated(item, "questions"), evaluated(item, "sampled")
    if sampled is None or sampled["n"] == total:
        return number(total)
    return f"{sampled['n']} of {total} have a reference"


def _by_category(run: Run) -> list[Block]:
    names = categories(run)
    if not names:
        return [Text("By category: all questions are of one category, so the figures above are that category's.")]
    series = {name: series_of(run, figure_of("sampled", name), "%") for name in names}
    ticks = y_ticks_of([one for group in series.values() for one in group], "%")
    figures = [panel(_with_count(run, name), series[name], "%", ticks) for name in names]
    title = "Sampled accuracy by category"
    return [Charts(figures, arms_legend(run), title), _category_table(run, names)]


def _with_count(run: Run, category: str) -> str:
    counts = [evaluated(item, "questions", category) for arm in run.arms for item in arm.rounds]
    known = {count for count in counts if count is not None}
    return f"{category} ({known.pop()} questions)" if len(known) == 1 else category


def _category_table(run: Run, names: Sequence[str]) -> Table:
    head = [""] + [f"{name} {kind} %" for name in names for kind in ("sampled", "greedy")]
    rows = [
        (
            run.label(arm),
            [[Cell(item.label), *_category_cells(item, names)] for item in arm.rounds],
        )
        for arm in run.arms
    ]
    return Table("Accuracy by category, with 95 % intervals", head, rows, folded=True)


def _category_cells(item: Round, names: Sequence[str]) -> list[Cell]:
    pairs = [(name, kind) for name in names for kind in ("sampled", "greedy")]
    return [estimate(evaluated(item, kind, name), percent) for name, kind in pairs]


def _without_truth(run: Run) -> list[Block]:
    log_odds, p_yes = series_of(run, figure_of("self_log_odds")), series_of(run, figure_of("self_p_yes"), "%")
    figures = [
        panel("Self-judged log-odds, nats (no proof of improvement)", log_odds, large=True),
        panel("Self-judged P(Yes) (no proof of improvement)", p_yes, "%", large=True),
    ]
    head = ["", "Self-judged log-odds", "Self-judged P(Yes) %", "Questions"]
    groups = [(run.label(arm), [_own_row(item) for item in arm.rounds]) for arm in run.arms]
    table = Table("The model's opinion of its own samples", head, groups)
    return [Text(NO_TRUTH, "gap"), Text(OWN_OPINION), Charts(figures, arms_legend(run), size="large"), table]


def _own_row(item: Round) -> list[Cell]:
    own = [Cell(number(evaluated(item, "self_log_odds"))), Cell(percent(evaluated(item, "self_p_yes")))]
    return [Cell(item.label), *own, Cell(number(evaluated(item, "questions")))]
