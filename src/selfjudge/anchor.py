"""The anchor: training that keeps the model's own verdicts of before as they were.

    anchor = Anchor(policy, verdicts, size=32, weight=1.0, seed=0)
    losses = anchor.losses(step=3, done=8, upto=16, total=32)     # those of the second quarter of a step's batch

A model that trains on its own preferences changes as a judge, too. The anchor adds the cross-entropy of its answer, Yes
or No, to the answer it gave before this training, on a few judged responses in every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from selfjudge.forward import causal_lm
from selfjudge.head import label_logprobs
from selfjudge.preferences import RecordFile
from selfjudge.rows import Branch, Row, Tree, pack

if TYPE_CHECKING:
    from selfjudge.trainer import Policy


class Verdict(NamedTuple):
    """A judge's question as token ids, the ids of Yes and of No behind it, and log p(Yes) - log p(No) in nats."""

    ids: tuple[int, ...]
    label_ids: tuple[tuple[int, ...], ...]
    log_odds: float


class VerdictFile(RecordFile):
    """Verdicts by their index."""

    longest = 1
    """Tokens of the longest question."""

    def append(self, verdict: Verdict) -> None:
        """Raises StepError when the disk refuses."""
        self.write(verdict)
        self.longest = max(self.longest, len(verdict.ids))

    def __getitem__(self, index: int) -> Verdict:
        ids, label_ids, log_odds = self.read(index)
        return Verdict(tuple(ids), tuple(map(tuple, label_ids)), log_odds)


class Anchor:
    """The verdicts that a training holds on to, and how firmly."""

    def __init__(self, policy: Policy, verdicts: VerdictFile, size: int, weight: float, seed: int) -> None:
        """`size`: verdicts of an optimiser step, at most all there are; `weight`: of their mean in the loss."""
        self.policy = policy
        self.verdicts = verdicts
        self.size = min(size, len(verdicts))
        self.weight = weight
        self.seed = seed

    def batch(self, step: int) -> list[int]:
        """Indices of the verdicts of an optimiser step: a function of seed and step alone, so a restart draws them."""
        return Random(f"{self.seed}\x1f{step}").sample(range(len(self.verdicts)), self.size)

    def losses(self, step: int, done: int, upto: int, total: int) -> Tensor:
        """Of the verdicts that go with prompts `done` to `upto` of the `total` of a step: each verdict goes once."""
        part = self.batch(step)[self.size * done // total : self.size * upto // total]
        return anchor_loss(self.policy, [self.verdicts[index] for index in part])


def anchor_loss(policy: Policy, verdicts: Sequence[Verdict]) -> Tensor:
    """(verdicts,) in nats: -t log p - (1 - t) log(1 - p) less its least value, p and t the shares of Yes, now and then.

    That is the Kullback-Leibler divergence of p from t: 0, with gradient 0, for a model that judges as it did.
    """
    now = _log_odds(policy, verdicts)
    before = torch.tensor([verdict.log_odds for verdict in verdicts], device=now.device)
    target = torch.sigmoid(before)
    least = binary_cross_entropy_with_logits(before, target, reduction="none")
    return binary_cross_entropy_with_logits(now, target, reduction="none") - least


def _log_odds(policy: Policy, verdicts: Sequence[Verdict]) -> Tensor:
    """(verdicts,) log p(Yes) - log p(No) in nats, float32, with gradient."""
    trees = [Tree(verdict.ids[:-1], (verdict.ids[-1:],)) for verdict in verdicts]
    rows = pack(trees, policy.budget.tokens)
    found = dict(item for row in rows for item in _row_log_odds(policy, row, verdicts))
    if not found:
        return torch.zeros(0, device=causal_lm(policy.model).device)
    return torch.stack([found[index] for index in range(len(found))])


def _row_log_odds(policy: Policy, row: Row, verdicts: Sequence[Verdict]) -> Iterator[tuple[int, Tensor]]:
    def labels(branch: Branch) -> tuple[tuple[int, ...], ...]:
        return verdicts[branch.index].label_ids

    hidden = policy.hidden(row)
    for label_ids, members in groupby(sorted(row.branches, key=labels), key=labels):
        branches = list(members)
        last = torch.tensor([branch.span.stop - 1 for branch in branches], device=hidden.device)
        yes_no, _ = label_logprobs(policy.head, hidden[last], label_ids, with_mass=False)  # (branches, 2)
        log_odds = (yes_no[:, 0] - yes_no[:, 1]).unbind()
        yield from zip((branch.index for branch in branches), log_odds, strict=True)
