"""What training logs beside the loss: figures of each prompt, and their means over the prompts since the last record.

    means([of_prompt(pairs, logps, ref_logps, z_max=4.0)])["clipped_share"]

All are in nats but shares and the correlation. Every prompt counts once, whatever its number of pairs; the correlation
is over the pairs themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from selfjudge.losses import Pairs, log_ratio_difference

Figures = dict[str, Tensor]
"""Name -> values of several prompts (prompts,), and `MOMENTS` (prompts, 6)."""

MOMENTS = "moments"
LEAST_PAIRS = 3
SPREAD = (1e-4, 1e-6)
"""Least standard deviations of D and of z, nats; D differs by less from rounding alone, as at the first step."""


def of_prompt(pairs: Pairs, logps: Tensor, ref_logps: Tensor, z_max: float | None) -> Figures:
    """The figures of one prompt from the log-probabilities (K,) of its responses; `z_max` where targets are clipped.

    forward_kl  mean over the responses of log ref - log pi. Its expectation over responses drawn from the reference is
                KL(ref || pi) in nats per response. These were selected among such draws, at the temperature that they
                were sampled with: a measure of distance that can be compared between steps, not an unbiased estimate.
    """
    chosen, rejected = logps[pairs.chosen], logps[pairs.rejected]
    difference = log_ratio_difference(chosen, rejected, ref_logps[pairs.chosen], ref_logps[pairs.rejected])
    change = logps - ref_logps
    figures = {
        "accuracy": (difference > 0).float().mean(),
        "log_ratio_difference": difference.mean(),
        "target": pairs.target.mean(),
        "chosen_change": change[pairs.chosen].mean(),
        "rejected_change": change[pairs.rejected].mean(),
        "chosen_logp": chosen.mean(),
        "rejected_logp": rejected.mean(),
        "forward_kl": -change.mean(),
        MOMENTS: _moments(difference, pairs.target),
    }
    if z_max is not None:
        figures["clipped_share"] = (pairs.target.abs() > z_max).float().mean()
    return figures


def means(figures: Sequence[Figures]) -> dict[str, float]:
    """Over all prompts of all parts; `target_correlation` is Pearson's of D (so of beta D as well) with z."""
    together = {name: torch.cat([part[name] for part in figures]) for name in figures[0]}
    correlation = _correlation(together.pop(MOMENTS).sum(0))
    return {name: values.mean().item() for name, values in together.items()} | {"target_correlation": correlation}


def _moments(x: Tensor, y: Tensor) -> Tensor:
    """(6,) float64: the number of pairs, and the sums of x, y, x^2, y^2 and x y."""
    x, y = x.double(), y.double()
    return torch.stack([torch.ones_like(x).sum(), x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()])


def _correlation(moments: Tensor) -> float:
    """NaN with fewer than 3 pairs, or where one of the two hardly varies."""
    count, x, y, xx, yy, xy = moments.tolist()
    if count < LEAST_PAIRS:
        return math.nan
    spreads = [math.sqrt(max(squares / count - (total / count) ** 2, 0.0)) for squares, total in ((xx, x), (yy, y))]
    if any(spread < least for spread, least in zip(spreads, SPREAD, strict=True)):
        return math.nan
    return (xy / count - x / count * y / count) / (spreads[0] * spreads[1])
