"""Votes of several annotators -> one log-strength per response (Zermelo 1929, Bradley and Terry 1952).

    >>> zermelo(np.array([[0, 7], [2, 0]]), prior=0.0).round(3)
    array([ 0.626, -0.626])

Seven votes against two: the strengths stand as 7 to 2, so their logs are log(3.5) = 1.253 nats apart.
Rows and columns of a vote matrix are the K responses to one prompt; `votes[i, j]` counts the votes for i over j.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from selfjudge.errors import DataError, StepError

TOLERANCE = 1e-8
"""Largest change of a centred log-strength in one sweep, in nats, that counts as converged."""


def zermelo(votes: ArrayLike, prior: float = 1.0, *, max_sweeps: int = 10_000) -> NDArray[np.float64]:
    """Log-strengths (K,) in nats with mean 0, from votes (K, K): the diagonal is not read, a tie is half a vote each.

    `prior` is the weight a of the logistic prior: each response wins and loses a imaginary votes against one of
    strength 1, so that a solution always exists. Raises DataError for an impossible matrix, StepError where prior=0
    leaves no solution or the sweeps do not converge.
    """
    counts = _checked(votes, prior)
    strengths = np.ones(len(counts))
    previous = np.zeros(len(counts))
    for _ in range(max_sweeps):
        _sweep(counts, strengths, prior)
        log_strengths = np.log(strengths) - np.log(strengths).mean()
        if np.abs(log_strengths - previous).max() < TOLERANCE:
            return log_strengths
        previous = log_strengths
    raise StepError(
        f"strengths did not converge in {max_sweeps} sweeps (prior {prior:g}); the votes are nearly one-sided: "
        "use a larger prior"
    )


def votes_from_scores(scores: ArrayLike, temperatures: ArrayLike) -> NDArray[np.float64]:
    """Soft votes (K, K) of h annotators: H_ij = sum_k sigmoid((s_i^k - s_j^k) / T_k); an exact tie is half a vote.

    `scores` (h, K) are log-odds in nats, `temperatures` (h,) one T > 0 per annotator. The diagonal is 0. Raises
    DataError where a score is missing or infinite: leave such a response out before the vote.
    """
    log_odds, scales = np.asarray(scores, float), np.asarray(temperatures, float)
    if log_odds.ndim != 2 or scales.shape != log_odds.shape[:1]:
        raise DataError(f"scores {log_odds.shape} and temperatures {scales.shape} must have shapes (h, K) and (h,)")
    if not np.all(np.isfinite(scales) & (scales > 0)):
        raise DataError(f"temperatures must be finite and above 0, found {scales.tolist()}")
    _require_finite(log_odds)
    scaled = log_odds / scales[:, None]
    differences = scaled[:, :, None] - scaled[:, None, :]  # (h, K, K)
    votes = np.exp(-np.logaddexp(0.0, -differences)).sum(axis=0)  # log sigmoid keeps the tails that sigmoid rounds to 0
    np.fill_diagonal(votes, 0.0)
    return votes


def hard_votes(scores: ArrayLike) -> NDArray[np.float64]:
    """Votes (K, K) of h annotators that each prefer outright: 1 for the higher of two scores (h, K), a tie is 1/2 each.

    The diagonal is 0. Raises DataError where a score is missing or infinite.
    """
    values = np.asarray(scores, float)
    _require_finite(values)
    differences = values[:, :, None] - values[:, None, :]  # (h, K, K)
    votes = ((differences > 0) + 0.5 * (differences == 0)).sum(axis=0)
    np.fill_diagonal(votes, 0.0)
    return votes


def _require_finite(scores: NDArray[np.float64]) -> None:
    for annotator, response in np.argwhere(~np.isfinite(scores)):
        found = scores[annotator, response]
        raise DataError(f"annotator {annotator} has score {found} for response {response}; leave the response out")


def _sweep(votes: NDArray[np.float64], strengths: NDArray[np.float64], prior: float) -> None:
    """One pass over the items, each seeing the new strengths of those before it; changes `strengths` (K,) in place."""
    for i, own in enumerate(strengths):
        # Newman 2023 (arXiv 2207.00076), the iteration with a logistic prior, generalised from a = 1 to any weight a
        wins = votes[i] @ (strengths / (own + strengths)) + prior / (1 + own)
        losses = votes[:, i] @ (1 / (own + strengths)) + prior / (1 + own)
        strengths[i] = wins / losses


def _checked(votes: ArrayLike, prior: float) -> NDArray[np.float64]:
    counts = np.array(votes, float)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or len(counts) < 2:
        raise DataError(f"votes must be a square matrix of at least 2 responses, found shape {counts.shape}")
    np.fill_diagonal(counts, 0.0)
    if not np.all(np.isfinite(counts) & (counts >= 0)):
        raise DataError("votes must be finite and at least 0")
    if not (np.isfinite(prior) and prior >= 0):
        raise DataError(f"prior must be finite and at least 0, found {prior}")
    if prior == 0:
        _require_solution(counts)
    return counts


def _require_solution(votes: NDArray[np.float64]) -> None:
    """Finite strengths exist iff every response beats every other, directly or through others (Ford 1957)."""
    beats = (votes > 0) | np.eye(len(votes), dtype=bool)
    for _ in range(len(votes).bit_length()):
        beats = beats @ beats  # paths of up to 2, 4, 8, ... wins
    for loser, winner in np.argwhere(~beats):
        raise StepError(
            f"the votes have no finite strengths: response {loser} never beats response {winner}, directly or through "
            "others; use a prior above 0 (1 is the default)"
        )
