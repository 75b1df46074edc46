"""Figures of a benchmark that are means of means, each with its bootstrap interval.

    chat = estimate(credits, "chat")              # credits (num_prompts, 1)
    weighted_mean([chat, safety], [358, 740]).figure()

The prompts of each part (a subset, a domain) are drawn with replacement, part by part; a figure over several parts
combines their draws, so that the bounds of an overall score follow from the same draws as those of its parts. The
draws of a part depend on its values and its name alone: neither the order of the rows nor the other parts matter.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from selfjudge.measures import BOOTSTRAP_SEED
from selfjudge.stats import RESAMPLES

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """Means of k columns over n prompts, and the same means of every resample; NaN where nothing is known."""

    values: Numbers
    """(k,)"""
    draws: Numbers
    """(RESAMPLES, k); NaN with a single prompt, from which nothing can be drawn."""
    n: int
    """Prompts that have at least one value."""

    def combined(self, weights: ArrayLike) -> Estimate:
        """One column: the sum of the k columns, each times its weight."""
        factors = np.asarray(weights, float)
        return Estimate((self.values @ factors)[None], (self.draws @ factors)[:, None], self.n)

    def figure(self, **beside: Any) -> dict[str, Any]:
        """The first column with its 95 % interval; `beside` stands beside them. None where nothing is known."""
        draws = self.draws[~np.isnan(self.draws[:, 0]), 0]
        low, high = np.quantile(draws, [0.025, 0.975]) if len(draws) else (math.nan, math.nan)
        bounds = {"value": known(self.values[0]), "low": known(low), "high": known(high), "n": self.n}
        return bounds | beside


def estimate(values: ArrayLike, name: str) -> Estimate:
    """Column means of `values` (n, k) with one row per prompt; NaN entries are left out of theirs."""
    rows = np.asarray(values, float)
    rows = rows[~np.isnan(rows).all(axis=1)]
    rows = rows[np.lexsort(rows.T)]
    n, k = rows.shape
    if n == 0:
        return Estimate(np.full(k, math.nan), np.full((RESAMPLES, k), math.nan), 0)
    means = _means(np.ones((1, n)), rows)[0]
    if n == 1:
        return Estimate(means, np.full((RESAMPLES, k), math.nan), 1)
    generator = np.random.default_rng([BOOTSTRAP_SEED, zlib.crc32(name.encode())])
    times_drawn = generator.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)  # (RESAMPLES, n)
    return Estimate(means, _means(times_drawn.astype(float), rows), n)


def _means(weights: Numbers, rows: Numbers) -> Numbers:
    """Weighted column means: weights (draws, n), rows (n, k) -> (draws, k); NaN where no value has weight."""
    present = ~np.isnan(rows)
    total = weights @ present.astype(float)
    sums = weights @ np.where(present, rows, 0.0)
    return np.divide(sums, total, out=np.full_like(sums, math.nan), where=total > 0)


def weighted_mean(parts: Sequence[Estimate], weights: Sequence[float] | None = None) -> Estimate:
    """The mean over the parts, column by column; without `weights` every part counts the same."""
    shares = np.asarray([1.0] * len(parts) if weights is None else weights)
    shares = shares / shares.sum()
    values = sum((share * part.values for share, part in zip(shares, parts, strict=True)), np.zeros(1))
    draws = sum((share * part.draws for share, part in zip(shares, parts, strict=True)), np.zeros(1))
    return Estimate(values, draws, sum(part.n for part in parts))


def strict_share(credits: ArrayLike) -> float | None:
    """Share of all (n,) that are fully right: ties and missing ones are lost. None without any."""
    values = np.asarray(credits, float)
    return float((values == 1).mean()) if len(values) else None


def known(value: float) -> float | None:
    """None for NaN: JSON has no other way to say so."""
    return None if math.isnan(value) else float(value)
