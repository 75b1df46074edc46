"""Muon (orthogonalised momentum) for the matrices of a small model, in float32 and batched by shape.

    >>> optimizer = Muon([torch.nn.Parameter(torch.eye(3))], lr=0.01)

`torch.optim.Muon` casts to bfloat16, which is many times slower on a CPU without bfloat16 units.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter

MOMENTUM, WEIGHT_DECAY, ITERATIONS = 0.95, 0.01, 4
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
UPDATE_RMS = 0.2
"""Root mean square of an update at lr 1, about that of AdamW, so that both take the same learning rate."""


class Muon:
    """Parameters must be matrices; those of one shape (up to transposition) are updated as one batch."""

    def __init__(self, parameters: Iterable[Parameter], lr: float) -> None:
        self.lr = lr
        self._batches: dict[tuple[int, int], list[Parameter]] = {}
        for parameter in parameters:
            self._batches.setdefault((min(parameter.shape), max(parameter.shape)), []).append(parameter)
        self._momenta = {shape: torch.zeros(len(batch), *shape) for shape, batch in self._batches.items()}

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter; all must have gradients, which are then dropped."""
        for shape, batch in self._batches.items():
            gradients = torch.stack([_wide(p.grad) for p in batch if p.grad is not None])  # (batch, rows, columns)
            momentum = self._momenta[shape].lerp_(gradients, 1 - MOMENTUM)
            updates = orthogonalise(gradients.lerp(momentum, MOMENTUM))  # Nesterov
            for parameter, update in zip(batch, updates * UPDATE_RMS * shape[1] ** 0.5, strict=True):
                _wide(parameter.data).mul_(1 - self.lr * WEIGHT_DECAY).sub_(update, alpha=self.lr)
                parameter.grad = None


def orthogonalise(matrices: Tensor) -> Tensor:
    """Singular values pushed towards 1 by Newton-Schulz iterations; (batch, rows, columns), rows <= columns."""
    linear, cubic, quintic = COEFFICIENTS
    matrices = matrices / (matrices.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(ITERATIONS):
        gram = matrices @ matrices.mT  # (batch, rows, rows)
        matrices = linear * matrices + (cubic * gram + quintic * gram @ gram) @ matrices
    return matrices


def _wide(matrix: Tensor) -> Tensor:
    """The matrix or its transpose, a view with at least as many columns as rows."""
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
