"""The rows of a round's finished steps -> the values that its charts and figures are made of.

>>> seen = observe(arm.rounds[1])
>>> len(seen.margins), margin_change(arm, {1: seen, 2: later}).is_alarm
(120, False)
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from selfjudge.alarms import RoundFigures, margin
from selfjudge.ids import IdTable
from selfjudge.measures import BOOTSTRAP_SEED, interval_of
from selfjudge.report.loading import Arm, Round, Run, StepFile
from selfjudge.stats import Interval, difference_interval
from selfjudge.store import Row

INTERVAL_FROM = 2
"""Values needed for an interval."""


def _no_numbers() -> array[float]:
    return array("d")


@dataclass
class Observed:
    """Log-odds in nats of all scored responses by truth, and of the pairs picked from them: 8 bytes a value."""

    right: array[float] = field(default_factory=_no_numbers)
    wrong: array[float] = field(default_factory=_no_numbers)
    unknown: array[float] = field(default_factory=_no_numbers)
    """Log-odds of responses to prompts without a reference."""
    margins: array[float] = field(default_factory=_no_numbers)
    """s(best) - s(worst) per picked pair."""
    best_right: array[float] = field(default_factory=_no_numbers)
    """1 or 0 per picked pair whose prompt has a reference."""

    @property
    def has_scores(self) -> bool:
        return bool(self.right or self.wrong or self.unknown)


Observations = Mapping[tuple[str, int], Observed]
"""By arm and round."""


class Change(NamedTuple):
    """Of the mean margin, from round 1 to `round`."""

    round: int
    first: float
    last: float

    @property
    def fall(self) -> float:
        """As a share of the first; negative where it rose."""
        return (self.first - self.last) / self.first

    @property
    def is_alarm(self) -> bool:
        return margin(RoundFigures(margin=self.first), RoundFigures(margin=self.last)) is not None


def observe_run(run: Run) -> Observations:
    return {(arm.name, item.number): observe(item) for arm in run.arms for item in arm.rounds[1:]}


def observe(item: Round) -> Observed:
    """Reads the scored and the selected rows once."""
    seen = Observed()
    for row in item.steps["scored"].finished_rows():
        _add_scores(seen, row)
    for row in item.steps["selected"].finished_rows():
        _add_pair(seen, row)
    return seen


def _add_scores(seen: Observed, row: Row) -> None:
    lists = {True: seen.right, False: seen.wrong, None: seen.unknown}
    for response, score in zip(row["responses"], row["scores"], strict=True):
        if score["value"] is not None:
            lists[is_right(response, row.get("reference"))].append(score["value"])


def _add_pair(seen: Observed, row: Row) -> None:
    best, worst = row["scores"][0]["value"], row["scores"][-1]["value"]
    seen.margins.append(best - worst)
    right = is_right(row["responses"][0], row.get("reference"))
    if right is not None:
        seen.best_right.append(float(right))


def is_right(response: Mapping[str, Any], reference: str | None) -> bool | None:
    """As the evaluation counts: ended by itself and equal to the reference; None where there is none."""
    if reference is None:
        return None
    return bool(response.get("finished", True)) and response["text"].strip() == reference.strip()


def mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def mean_with_interval(values: Sequence[float]) -> dict[str, Any] | None:
    """The mean with its 95 % bootstrap interval in the form that the summaries have; None without values."""
    if len(values) < INTERVAL_FROM:
        return {"value": values[0], "low": None, "high": None, "n": 1} if values else None
    return interval_of(values)


def margin_change(arm: Arm, seen: Mapping[int, Observed]) -> Change | None:
    """From round 1 to the latest round with pairs; None for a control judge, whose margins say nothing."""
    means = {number: mean(one.margins) for number, one in sorted(seen.items())}
    known = {number: value for number, value in means.items() if value is not None}
    if arm.is_control or len(known) < 2 or known.get(1, 0.0) <= 0:
        return None
    last = max(known)
    return Change(last, known[1], known[last])


# Evaluations


def last_evaluated(arm: Arm) -> Round | None:
    """The latest trained model whose evaluation is done."""
    done = [item for item in arm.rounds[1:] if item.steps["evaluation"].state == "done"]
    return done[-1] if done else None


def has_truth(run: Run) -> bool:
    """True when an evaluation had reference answers."""
    return any("sampled" in item.steps["evaluation"].summary for arm in run.arms for item in arm.rounds)


def categories(run: Run) -> list[str]:
    """Of the evaluations; empty where there is a single one."""
    summaries = [item.steps["evaluation"].summary for arm in run.arms for item in arm.rounds]
    return sorted({name for summary in summaries for name in summary.get("by_category", {})})


def evaluated(item: Round, name: str, category: str | None = None) -> Any:
    """A figure of the round's evaluation, of one category where given; None where it is not there."""
    summary = item.steps["evaluation"].summary
    found = summary if category is None else summary.get("by_category", {}).get(category, {})
    return found.get(name)


def sampled_gain(arm: Arm) -> Interval | None:
    """Sampled accuracy of the last evaluated model minus the start's, over the questions that both answered."""
    last = last_evaluated(arm)
    if last is None:
        return None
    places, before = IdTable(), array("d")
    for key, share in _shares_right(arm.rounds[0].steps["evaluation"]):
        places[key] = len(before)
        before.append(share)
    both = [(share, before[places[key]]) for key, share in _shares_right(last.steps["evaluation"]) if key in places]
    if len(both) < INTERVAL_FROM:
        return None
    after, paired = np.asarray(both).T
    return difference_interval(after, paired, seed=BOOTSTRAP_SEED)


def _shares_right(step: StepFile) -> Iterator[tuple[str, float]]:
    """Each question, and the share of its sampled answers that are right."""
    known = (row for row in step.finished_rows() if row["reference"] is not None)
    return ((row["id"], sum(one["right"] for one in row["samples"]) / len(row["samples"])) for row in known)
