"""Rows -> figures with intervals, shared by the steps that measure."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfjudge import stats
from selfjudge.readers import content_id
from selfjudge.records import Example, Message

BOOTSTRAP_SEED = 0

Numbers = Sequence[float] | NDArray[Any]
Difference = tuple[str, float]
"""Kind of the wrong response (empty where not named), score of the right one minus that of the wrong one."""


@dataclass
class Measure:
    """A running mean over values that are not NaN."""

    total: float = 0.0
    count: int = 0

    def add(self, values: Iterable[float]) -> None:
        for value in values:
            if not math.isnan(value):
                self.total += value
                self.count += 1

    @property
    def mean(self) -> float:
        """NaN without values."""
        return self.total / self.count if self.count else math.nan


def interval_of(values: Numbers, groups: Numbers | None = None) -> dict[str, Any]:
    """Mean with its 95 % bootstrap interval over prompts, as the summaries hold it; `groups` numbers the prompts.

    NaN values are left out; `n` counts the others.
    """
    interval = stats.mean_interval(values, groups, seed=BOOTSTRAP_SEED)
    return {"value": interval.estimate, "low": interval.low, "high": interval.high, "n": int((~np.isnan(values)).sum())}


def pair_differences(example: Example) -> list[Difference]:
    """Every (right, wrong) pair of an example whose right responses are known; none otherwise."""
    if not example.gold or not example.scores:
        return []
    kinds = example.tags.get("kinds", [""] * len(example.scores))
    score = [s.value for s in example.scores]
    return [(kinds[wrong], score[right] - score[wrong]) for right, wrong in labelled_pairs(example)]


def labelled_pairs(example: Example) -> list[tuple[int, int]]:
    """Indices of every (right, wrong) pair of responses; none where the right ones are not known."""
    gold = example.gold or ()
    wrong = [index for index in range(len(example.responses)) if index not in gold]
    return [(right, index) for right in gold for index in wrong]


def prompt_number(messages: tuple[Message, ...]) -> int:
    """64 bits that depend on the conversation alone, so that intervals draw all rows of a prompt together."""
    return int(content_id(messages), 16)


class JudgedPairs:
    """The score differences of all pairs, as plain numbers: 20 bytes a pair."""

    def __init__(self) -> None:
        self._differences = array("d")
        self._prompts = array("Q")
        self._kinds = array("I")
        self._names: dict[str, int] = {}
        self._added = 0

    def add(self, pairs: Iterable[Difference], prompt: int | None = None) -> None:
        """The pairs of one row; rows with the same `prompt` number are drawn together, without one each on its own."""
        for kind, difference in pairs:
            self._differences.append(difference)
            self._prompts.append(self._added if prompt is None else prompt)
            self._kinds.append(self._names.setdefault(kind, len(self._names)))
        self._added += 1

    def figures(self) -> dict[str, Any]:
        """Accuracy over all pairs (ties half), the strict figure, and the accuracy against each kind of wrong response.

        Nothing where there is no pair.
        """
        if not self._differences:
            return {}
        differences, kinds = np.asarray(self._differences), np.asarray(self._kinds)
        figures: dict[str, Any] = {"judge_accuracy": self._accuracy(np.ones(len(kinds), bool))}
        for name in sorted(filter(None, self._names)):
            figures[f"judge_accuracy_{name}"] = self._accuracy(kinds == self._names[name])
        counted = stats.accuracy(differences)
        return figures | {"judge_strict": counted.strict, "pairs": counted.n, "ties": counted.ties}

    def _accuracy(self, chosen: NDArray[np.bool_]) -> dict[str, Any]:
        credits = stats.credit(np.asarray(self._differences)[chosen])
        return interval_of(credits, np.asarray(self._prompts)[chosen])


def agreement_figures(pairs: Sequence[tuple[Example, Example]]) -> dict[str, Any]:
    """How two judges rank the same responses: one pair of an example, scored in place and by the separate question.

    Kendall's tau-b and the share of the same best response, means over prompts; where the right answer is known, how
    often the best one is right. Repeated responses count once; prompts with a single or an unjudged one are left out.
    """
    ranked = [(_scores_by_text(one), _scores_by_text(other), one) for one, other in pairs]
    usable = [(a, b, one) for a, b, one in ranked if len(a) > 1 and not math.isnan(sum([*a.values(), *b.values()]))]
    taus = [stats.kendall_tau_b([*a.values()], [b[text] for text in a]) for a, b, _ in usable]
    known = [(a, b, one) for a, b, one in usable if one.gold or one.reference is not None]
    figures = {
        "kendall_tau": interval_of([tau for tau in taus if not math.isnan(tau)]),
        "same_best": interval_of([float(_best(a) == _best(b)) for a, b, _ in usable]),
    }
    if known:
        figures["best_right_in_place"] = interval_of([_is_right(one, _best(a)) for a, _, one in known])
        figures["best_right_separate"] = interval_of([_is_right(one, _best(b)) for _, b, one in known])
    return figures


def _scores_by_text(example: Example) -> dict[str, float]:
    """The first of equal texts, in the order of the responses."""
    scores: dict[str, float] = {}
    for response, score in zip(example.responses, example.scores, strict=True):
        scores.setdefault(response.text, score.value)
    return scores


def _best(scores: dict[str, float]) -> str:
    return max(scores, key=lambda text: scores[text])


def _is_right(example: Example, text: str) -> float:
    if example.gold is not None:
        return float(any(example.responses[index].text == text for index in example.gold))
    return float(text.strip() == str(example.reference).strip())
