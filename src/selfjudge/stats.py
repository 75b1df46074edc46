"""Figures with their uncertainty: accuracy with ties, bootstrap intervals, McNemar's test, calibration.

    >>> accuracy([2.0, -1.0, 0.0, math.nan])
    Accuracy(n=3, accuracy=0.5, strict=0.25, ties=1, missing=1)

A pair is one difference s(chosen) - s(rejected), in nats: right above 0, a tie at 0, missing where NaN.
Intervals are percentiles of a seeded bootstrap that draws whole prompts, so the pairs of one prompt stay together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from selfjudge.errors import DataError, StepError

RESAMPLES = 2000
DRAWN_AT_ONCE = 1 << 19
"""Numbers in memory at a time during a bootstrap: 4 MiB of indices and as much of values."""


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
    tail = (1 - confidence) / 2
    low, high = np.quantile(_bootstrap_means(sums, counts, seed, resamples), [tail, 1 - tail])
    return Interval(estimate, float(low), float(high))


def _bootstrap_means(
    sums: NDArray[np.float64], counts: NDArray[np.intp], seed: int, resamples: int
) -> NDArray[np.float64]:
    """Mean of each resample (resamples,), at most DRAWN_AT_ONCE numbers at a time; the draws do not depend on that."""
    generator = np.random.default_rng(seed)
    at_once = max(1, DRAWN_AT_ONCE // len(sums))
    means = np.empty(resamples)
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        drawn = generator.integers(len(sums), size=(size, len(sums)))  # (size, num_groups)
        means[start : start + size] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return means


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


class Bin(NamedTuple):
    """The predictions in [low, high), the last bin with its upper end; the means are NaN where n is 0."""

    low: float
    high: float
    n: int
    predicted: float
    """Mean of the predicted probabilities."""
    right: float
    """Mean of the outcomes."""


def reliability(probabilities: ArrayLike, outcomes: ArrayLike, bins: int = 10) -> list[Bin]:
    """Predictions (n,) beside what came of them (n,), in `bins` bins of equal width over [0, 1], empty ones included.

    An outcome is 1 (it happened), 0 (it did not) or 0.5 (half credit). A prediction that is NaN is left out with its
    outcome, and the other way round. Raises DataError for a probability outside [0, 1].
    """
    predicted, happened = _predictions(probabilities, outcomes)
    edges = np.arange(bins + 1) / bins
    place = np.minimum(np.searchsorted(edges, predicted, side="right") - 1, bins - 1)
    counts = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, weights=values, minlength=bins) for values in (predicted, happened)]
    means = [np.divide(total, counts, out=np.full(bins, math.nan), where=counts > 0) for total in sums]
    columns = (edges[:-1], edges[1:], counts, *means)
    return [Bin(float(a), float(b), int(n), float(p), float(r)) for a, b, n, p, r in zip(*columns, strict=True)]


def expected_calibration_error(probabilities: ArrayLike, outcomes: ArrayLike, bins: int = 10) -> float:
    """sum over bins of n_bin / n * |mean outcome - mean prediction|, in [0, 1]; NaN without predictions.

    Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv 1706.04599, equation 3.
    """
    filled = [each for each in reliability(probabilities, outcomes, bins) if each.n]
    n = sum(each.n for each in filled)
    return math.fsum(each.n * abs(each.right - each.predicted) for each in filled) / n if n else math.nan


def brier_score(probabilities: ArrayLike, outcomes: ArrayLike) -> float:
    """Mean of (prediction - outcome)^2, in [0, 1]; NaN without predictions."""
    predicted, happened = _predictions(probabilities, outcomes)
    return float(((predicted - happened) ** 2).mean()) if len(predicted) else math.nan


def log_loss(log_odds: ArrayLike, outcomes: ArrayLike) -> float:
    """-mean[y log p + (1 - y) log(1 - p)] in nats with p = sigmoid(log_odds); NaN without predictions.

    Takes log-odds because a probability that has been rounded to 0 or 1 has an infinite loss.
    """
    odds, happened = _both_known(log_odds, outcomes)
    return float((np.logaddexp(0.0, odds) - happened * odds).mean()) if len(odds) else math.nan


def sigmoid(log_odds: ArrayLike) -> NDArray[np.float64]:
    """1 / (1 + exp(-x)) of each log-odds (n,), without overflow; NaN stays."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(log_odds, float)))


def _predictions(probabilities: ArrayLike, outcomes: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    predicted, happened = _both_known(probabilities, outcomes)
    outside = predicted[(predicted < 0) | (predicted > 1)]
    if len(outside):
        raise DataError(f"{outside[0]:g} is no probability; give numbers from 0 to 1")
    return predicted, happened


def _both_known(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    one, other = _paired(first, second)
    known = ~(np.isnan(one) | np.isnan(other))
    return one[known], other[known]


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
