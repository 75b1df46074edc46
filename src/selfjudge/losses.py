"""Preference losses on log-probabilities of whole responses: free functions, one loss per pair.

    >>> one = torch.ones(1)
    >>> irepo(3 * one, 1 * one, 2 * one, 1 * one, 2 * one, beta=0.5)  # D = (3 - 2) - (1 - 1) = 1, (0.5 - 2)^2
    tensor([2.2500])

All take the same five tensors of shape (num_pairs,), in nats:

    chosen_logps, rejected_logps            log pi(y_w | x), log pi(y_l | x): sums over response tokens and end token
    ref_chosen_logps, ref_rejected_logps    the same under the reference model
    target                                  z = log-strength of chosen - of rejected; `dpo` and `azar` do not use it

and return float32 losses (num_pairs,), computed in float32. D is the log-ratio difference of `log_ratio_difference`.
With the same beta and an unclipped z, dpo at its minimum sends D to infinity, soft_bce and irepo to z / beta.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


def log_ratio_difference(
    chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor
) -> Tensor:
    """D = [log pi(y_w) - log ref(y_w)] - [log pi(y_l) - log ref(y_l)], (num_pairs,) float32, in nats."""
    return (chosen_logps.float() - ref_chosen_logps.float()) - (rejected_logps.float() - ref_rejected_logps.float())


def dpo(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    target: Tensor,  # noqa: ARG001  (same five tensors for every loss)
    *,
    beta: float,
) -> Tensor:
    """-log sigmoid(beta D): Rafailov et al. 2023 (arXiv 2305.18290), eq. 7. `target` is not used: the label is hard."""
    difference = log_ratio_difference(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return -functional.logsigmoid(beta * difference)


def soft_bce(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    target: Tensor,
    *,
    beta: float,
) -> Tensor:
    """-p log sigmoid(beta D) - (1 - p) log sigmoid(-beta D), p = sigmoid(z): dpo with the judge's own probability."""
    difference = log_ratio_difference(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    chance = torch.sigmoid(target.float())
    return functional.binary_cross_entropy_with_logits(beta * difference, chance, reduction="none")


def azar(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    target: Tensor,  # noqa: ARG001
    *,
    tau: float,
) -> Tensor:
    """(D - 1/(2 tau))^2: Azar et al. 2023 (arXiv 2310.12036), eq. 17, on sums as written there.

    `target` is not used. TRL's `loss_type="ipo"` divides each log-ratio by its number of tokens before the difference.
    """
    difference = log_ratio_difference(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return (difference - 1 / (2 * tau)).square()


def irepo(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    target: Tensor,
    *,
    beta: float,
    z_max: float = 4.0,
) -> Tensor:
    """(beta D - clip(z, -z_max, z_max))^2: Le et al. 2024 (arXiv 2405.15230); beta and the clip are ours.

    At D = 0 it is z^2 and its gradient is 4 z times that of dpo.
    """
    difference = log_ratio_difference(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return (beta * difference - target.float().clamp(-z_max, z_max)).square()


LOSSES: dict[str, Callable[..., Tensor]] = {"dpo": dpo, "soft-bce": soft_bce, "azar": azar, "irepo": irepo}


def loss_options(name: str) -> tuple[str, ...]:
    """The options that a loss takes, so that one it would ignore can be refused: `("beta", "z_max")` for irepo."""
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


class Pairs(NamedTuple):
    """The pairs of one prompt: places of the two responses (num_pairs,) int64, `target` z in nats and `weight`."""

    chosen: Tensor
    rejected: Tensor
    target: Tensor
    weight: Tensor


def all_pairs(strengths: Tensor) -> Pairs:
    """Every pair of unequal strengths (K,), the stronger as chosen; weights 1 / num_pairs, so prompts count alike.

    Two responses give their one pair; equal strengths everywhere give no pair.
    """
    chosen, rejected = torch.nonzero(strengths[:, None] > strengths[None, :], as_tuple=True)
    target = (strengths[chosen] - strengths[rejected]).float()
    weight = torch.full_like(target, 1 / max(len(target), 1))
    return Pairs(chosen, rejected, target, weight)
