"""How far a judge can be trusted: calibration, bias by length and by position, accuracy by category.

    figures = judging_figures(judged, absolute=True)
    figures["calibration"]["after"]["ece"], figures["bias"]["length"]["longer_preferred"]["value"]

All from judged rows with known right responses; of each pair a few numbers are kept. Intervals draw whole prompts.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfjudge import stats
from selfjudge.errors import StepError
from selfjudge.judges.pairwise import both_orders
from selfjudge.measures import interval_of, labelled_pairs, prompt_number
from selfjudge.records import Example

Figures = dict[str, Any]
Numbers = NDArray[np.float64]

BINS = 10
HALF = 1 << 63
"""Prompts whose number is below are those that a temperature is fitted on."""
UNCATEGORISED = "uncategorised"


def judging_figures(judged: Iterable[Example], absolute: bool = False) -> Figures:
    """The figures of all rows; what has nothing to be computed from is left out.

    `absolute`: the scores are log-odds that a response is right, so that sigmoid(score) itself can be checked.
    """
    pairs, responses, showings = _Pairs(), _Responses(), _Showings()
    for example in judged:
        prompt = prompt_number(example.messages)
        pairs.add(example, prompt)
        showings.add(example, prompt)
        if absolute:
            responses.add(example)
    figures: Figures = {}
    if pairs.differences:
        of_pairs, of_length, by_category = pairs.figures()
        pointwise = {"pointwise": responses.figures()} if absolute else {}
        figures = {"calibration": of_pairs | pointwise, "bias": {"length": of_length}} | by_category
    if showings.prompts:
        figures.setdefault("bias", {})["position"] = showings.figures()
    return figures


# Calibration


def calibration(differences: Numbers, fitting: NDArray[np.bool_]) -> Figures:
    """One temperature T fitted on the pairs in `fitting`, and the others' calibration at T = 1 and at T.

    `differences` (num_pairs,) are s(right) - s(wrong) in the judge's unit, which T carries too; NaN ones are left out.
    Where no T can be fitted, `temperature` is NaN and `reason` says why.
    """
    known = ~np.isnan(differences)
    fitted_on, others = differences[known & fitting], differences[known & ~fitting]
    figures: Figures = {"temperature": math.nan, "fitted_pairs": len(fitted_on), "checked_pairs": len(others)}
    before = {"before": _pair_reliability(others, 1.0)}
    try:
        temperature = stats.fit_temperature(fitted_on, np.zeros(len(fitted_on)))
    except StepError as error:
        return figures | {"reason": str(error)} | before
    return figures | {"temperature": temperature} | before | {"after": _pair_reliability(others, temperature)}


def _pair_reliability(differences: Numbers, temperature: float) -> Figures:
    """The confidence max(p, 1 - p) with p = sigmoid(difference / T) beside being right, a tie being half right.

    The direction of a pair is known beforehand (right first), so p alone would always be compared with 1.
    """
    log_odds = np.abs(differences) / temperature
    figures = _reliability(log_odds, stats.credit(differences), 2 * BINS)
    return figures | {"bins": figures["bins"][BINS:]}  # no confidence is below 0.5


def _reliability(log_odds: Numbers, outcomes: Numbers, bins: int) -> Figures:
    probabilities = stats.sigmoid(log_odds)
    return {
        "ece": stats.expected_calibration_error(probabilities, outcomes, bins),
        "brier": stats.brier_score(probabilities, outcomes),
        "log_loss": stats.log_loss(log_odds, outcomes),
        "mean_predicted": float(probabilities.mean()) if len(probabilities) else math.nan,
        "mean_right": float(outcomes.mean()) if len(outcomes) else math.nan,
        "bins": [each._asdict() for each in stats.reliability(probabilities, outcomes, bins)],
    }


# What is kept of the rows


def _doubles() -> array[float]:
    return array("d")


def _numbers() -> array[int]:
    return array("Q")


@dataclass
class _Pairs:
    """Every pair of a right and a wrong response: 25 bytes each."""

    differences: array[float] = field(default_factory=_doubles)
    """s(right) - s(wrong)."""
    prompts: array[int] = field(default_factory=_numbers)
    longer: array[int] = field(default_factory=lambda: array("b"))
    """1 where the right response has more characters, -1 where it has fewer, 0 where as many."""
    categories: array[int] = field(default_factory=_numbers)
    names: dict[str, int] = field(default_factory=dict[str, int])

    def add(self, example: Example, prompt: int) -> None:
        """All pairs of one row."""
        lengths = [len(response.text) for response in example.responses]
        for right, wrong in labelled_pairs(example):
            category = self.names.setdefault(example.category or UNCATEGORISED, len(self.names))
            self.differences.append(example.scores[right].value - example.scores[wrong].value)
            self.prompts.append(prompt)
            self.longer.append((lengths[right] > lengths[wrong]) - (lengths[right] < lengths[wrong]))
            self.categories.append(category)

    def figures(self) -> tuple[Figures, Figures, Figures]:
        """Calibration, length bias, and the accuracy by category where there are several; over the judged pairs."""
        differences = np.asarray(self.differences, float)
        prompts, longer = np.asarray(self.prompts, np.uint64), np.asarray(self.longer, np.int8)
        known = ~np.isnan(differences)
        length = length_bias(differences[known], longer[known], prompts[known])
        return calibration(differences, prompts < HALF), length, self._by_category(stats.credit(differences), prompts)

    def _by_category(self, credits: Numbers, prompts: NDArray[np.uint64]) -> Figures:
        categories = np.asarray(self.categories)
        chosen = {name: ~np.isnan(credits) & (categories == number) for name, number in self.names.items()}
        if len(chosen) < 2:
            return {}
        return {"by_category": {n: interval_of(credits[rows], prompts[rows]) for n, rows in sorted(chosen.items())}}


def length_bias(differences: Numbers, longer: NDArray[np.int8], prompts: NDArray[np.uint64]) -> Figures:
    """How often the longer response is preferred and how often it is right, over the pairs of unequal length.

    And the accuracy where the right response is the longer one, the shorter one, and where both are as long. `longer`
    (num_pairs,) is 1, -1 and 0 in these cases. A tie is half a preference. Cases without a pair are left out.
    """
    credits = stats.credit(differences)
    unequal = longer != 0
    preferred = np.where(longer > 0, credits, 1 - credits)
    cases = {
        "longer_preferred": (preferred, unequal),
        "longer_right": (np.asarray(longer > 0, float), unequal),
        "accuracy_right_longer": (credits, longer > 0),
        "accuracy_right_shorter": (credits, longer < 0),
        "accuracy_equal_length": (credits, longer == 0),
    }
    return {name: interval_of(of[rows], prompts[rows]) for name, (of, rows) in cases.items() if rows.any()}


@dataclass
class _Responses:
    """The score of every response beside whether it is right."""

    scores: array[float] = field(default_factory=_doubles)
    right: array[int] = field(default_factory=lambda: array("b"))

    def add(self, example: Example) -> None:
        """The judged responses of one row whose right ones are known."""
        if example.gold is None:
            return
        for index, score in enumerate(example.scores):
            if not math.isnan(score.value):
                self.scores.append(score.value)
                self.right.append(index in example.gold)

    def figures(self) -> Figures:
        """P(Yes) = sigmoid(score) beside being right."""
        found = _reliability(np.asarray(self.scores, float), np.asarray(self.right, float), BINS)
        return {"responses": len(self.scores)} | found


@dataclass
class _Showings:
    """Comparisons of two responses that were asked about in both orders."""

    when_first: array[float] = field(default_factory=_doubles)
    when_second: array[float] = field(default_factory=_doubles)
    prompts: array[int] = field(default_factory=_numbers)

    def add(self, example: Example, prompt: int) -> None:
        """All comparisons of one row of which both orders are known."""
        for when_first, when_second in both_orders(example):
            self.when_first.append(when_first)
            self.when_second.append(when_second)
            self.prompts.append(prompt)

    def figures(self) -> Figures:
        """Share of comparisons whose verdicts are opposite, and share of verdicts for the response shown first.

        A tie is no opposite and half a verdict.
        """
        first, second, prompts = (np.asarray(column) for column in (self.when_first, self.when_second, self.prompts))
        return {
            "position_flips": interval_of(np.sign(first) * np.sign(second) < 0, prompts),
            "first_preferred": interval_of((stats.credit(first) + stats.credit(-second)) / 2, prompts),
        }
