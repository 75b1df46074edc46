"""Figures with their uncertainty: accuracy with ties, bootstrap intervals, McNemar's test, calibration.

    >>> accuracy([2.0, -1.0, 0.0, math.nan])
    Accuracy(n=3, accuracy=0.5, strict=0.25, ties=1, missing=1)

A pair is one difference s(chosen) - s(rejected), in nats: right above 0, a tie at 0, missing where NaN.
Intervals are percentiles of a seeded bootstrap that draws whole prompts, so the pairs of one prompt stay together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from selfjudge.errors import DataError, StepError

RESAMPLES = 2000


@dataclass(frozen=True)
class Accuracy:
    """How often the chosen response scored higher."""

    n: int
    """Pairs judged; `missing` ones are not among them."""
    accuracy: float
    """Share of n that is right, a tie counting half; NaN when nothing was judged."""
    strict: float
    """Share of n + missing that is right: ties and missing are lost; NaN without any pair."""
    ties: int
    missing: int


@dataclass(frozen=True)
class Interval:
    """An estimate and the bounds around it; all NaN without data, the bounds NaN with a single group."""

    estimate: float
    low: float
    high: float


def credit(differences: ArrayLike) -> NDArray[np.float64]:
    """Per pair (num_pairs,): 1 where right, 0.5 where tied, 0 where wrong, NaN where missing."""
    return np.sign(np.asarray(differences, float)) / 2 + 0.5


def accuracy(differences: ArrayLike) -> Accuracy:
    """Counts and shares over the pairs' score differences (num_pairs,)."""
    credits = credit(differences)
    missing = int(np.isnan(credits).sum())
    n = len(credits) - missing
    return Accuracy(
        n=n,
        accuracy=float(np.nansum(credits)) / n if n else math.nan,
        strict=float((credits == 1).sum()) / len(credits) if len(credits) else math.nan,
        ties=int((credits == 0.5).sum()),
        missing=missing,
    )


def mean_interval(
    values: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    seed: int,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Mean of `values` (n,) and its percentile bootstrap interval, drawing whole groups; NaN values are left out.

    `groups` (n,) are prompt ids (any type that compares); without them every value is drawn on its own. Give it
    `credit(differences)` for an accuracy with half credit, or one figure per prompt for a plain mean.
    """
    sums, counts = _group_sums(np.asarray(values, float), groups)
    if not len(sums):
        return Interval(math.nan, math.nan, math.nan)
    estimate = float(sums.sum() / counts.sum())
    if len(sums) == 1:
        return Interval(estimate, math.nan, math.nan)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    for i in range(resamples):
        drawn = generator.integers(len(sums), size=len(sums))
        means[i] = sums[drawn].sum() / counts[drawn].sum()
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(estimate, float(low), float(high))


def difference_interval(
    first: ArrayLike,
    second: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    seed: int,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Mean of first - second over the same pairs (n,), both drawn together; a pair missing in either is left out.

    With the `credit` of two judges this is the difference of their accuracies on the pairs that both judged.
    """
    one, other = _paired(first, second)
    return mean_interval(one - other, groups, seed=seed, confidence=confidence, resamples=resamples)


def discordant(first: ArrayLike, second: ArrayLike) -> tuple[int, int]:
    """Pairs that only the first judge has right, and only the second, from their score differences (num_pairs,).

    Right is strict, so a tie is not right; pairs missing in either are left out.
    """
    one, other = _paired(first, second)
    judged = ~(np.isnan(one) | np.isnan(other))
    return int((judged & (one > 0) & ~(other > 0)).sum()), int((judged & (other > 0) & ~(one > 0)).sum())


def mcnemar(first_only: int, second_only: int) -> float:
    """Two-sided p of the exact McNemar test: the discordant pairs are fair coins if the judges are equally good."""
    n, fewer = first_only + second_only, min(first_only, second_only)
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**n)  # whole numbers up to the one division: exact for any n


def kendall_tau_b(first: ArrayLike, second: ArrayLike) -> float:
    """How far two scores (n,) rank alike: 1 the same order, -1 the reverse; NaN where one of them is constant or n < 2.

    (concordant - discordant) / sqrt(pairs untied in the first * pairs untied in the second); a tie is never concordant.
    """
    one, other = _paired(first, second)
    orders, others = np.sign(one[:, None] - one), np.sign(other[:, None] - other)  # (n, n)
    untied = float((orders**2).sum() * (others**2).sum())
    return float((orders * others).sum()) / math.sqrt(untied) if untied else math.nan


def fit_temperature(chosen_scores: ArrayLike, rejected_scores: ArrayLike) -> float:
    """The T > 0 that minimises -mean log sigmoid((s_c - s_r) / T) over labelled pairs (n,), scores in nats.

    The loss is convex in 1/T. Pairs whose difference is not finite are left out. Raises StepError where the loss has
    no minimum: no pair is wrong (T -> 0), or the chosen responses do not score higher on average (T -> infinity).
    """
    chosen, rejected = _paired(chosen_scores, rejected_scores)
    differences = chosen - rejected
    differences = differences[np.isfinite(differences)]
    if not np.any(differences):
        raise StepError(f"no temperature can be fitted to {len(differences)} pairs without a score difference")
    if differences.min() >= 0:
        raise StepError(
            f"no temperature can be fitted: none of the {len(differences)} pairs is wrong, so the fit runs to its "
            "bound T = 0; use more pairs or harder ones"
        )
    if differences.mean() <= 0:
        raise StepError(
            f"no temperature can be fitted: the chosen responses score {-differences.mean():.3g} nats lower than the "
            "rejected ones on average, so the fit runs to its bound T = infinity; is the order of the pairs right?"
        )
    return 1 / _root_of_slope(differences)


def _root_of_slope(differences: NDArray[np.float64]) -> float:
    """The b = 1/T where the loss mean log(1 + exp(-b d)) is flat, by bisection: its slope rises with b from below 0."""

    def slope(inverse: float) -> float:
        return float(-(differences * np.exp(-np.logaddexp(0.0, inverse * differences))).mean())

    low, high = 0.0, float(1 / np.abs(differences).max())
    while slope(high) < 0:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):  # down to neighbouring floats
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return high


def _group_sums(values: NDArray[np.float64], groups: ArrayLike | None) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Sum and count of the values present, per group that has any: two arrays (num_groups,)."""
    keys = np.arange(len(values)) if groups is None else np.asarray(groups)
    if keys.shape != values.shape:
        raise DataError(f"{len(values)} values but groups of shape {keys.shape}; give one group id per value")
    present = ~np.isnan(values)
    _, inverse = np.unique(keys[present], return_inverse=True)
    sums = np.asarray(np.bincount(inverse, weights=values[present]), float)
    return sums, np.bincount(inverse)


def _paired(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    one, other = np.asarray(first, float), np.asarray(second, float)
    if one.shape != other.shape or one.ndim != 1:
        raise DataError(f"paired figures must be two lists of one length, found shapes {one.shape} and {other.shape}")
    return one, other
