"""From hidden states to log-probabilities: only the positions and the rows of the output head that are needed.

    head = output_head(model)
    label_logprobs(head, hidden, groups=[[3869], [1939]])       # (items, groups), label mass follows from it
    response_logps(head, hidden, row)                           # (branches of the row,)

Everything here is float32 and in nats whatever the model's dtype: a difference of two bfloat16 logits has 3 digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from selfjudge.errors import ModelError
from selfjudge.rows import Row

CHUNK_ELEMENTS = 1 << 24  # positions x vocabulary of one chunk of logits: 64 MiB in float32


@dataclass(frozen=True)
class Head:
    """logits = softcap(scale * (hidden @ weight.T + bias)); `weight` (V, width), `bias` (V,)."""

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None

    def logits(self, hidden: Tensor, ids: Tensor | None = None) -> Tensor:
        """(items, width) -> (items, V) float32, or (items, len(ids)) for chosen vocabulary rows only."""
        if ids is None:
            values = F.linear(hidden, self.weight, self.bias).float()
        else:
            bias = None if self.bias is None else self.bias[ids].float()
            values = F.linear(hidden.float(), self.weight[ids].float(), bias)
        if self.scale != 1:
            values = values * self.scale
        return values if self.softcap is None else self.softcap * torch.tanh(values / self.softcap)

    def slope(self, logits: Tensor) -> Tensor | float:
        """d logits / d (hidden @ weight.T + bias), of the shape of `logits` where the model caps them."""
        return self.scale if self.softcap is None else self.scale * (1 - (logits / self.softcap).square())


def output_head(model: PreTrainedModel) -> Head:
    """The model's output head. Raises ModelError where it computes something that `Head` does not."""
    layer: Any = model.get_output_embeddings()
    if layer is None:
        raise ModelError(f"{type(model).__name__} has no output head: it is not a causal language model")
    if model.base_model is model:
        raise ModelError(f"{type(model).__name__} does not show its hidden states: no model under its output head")
    text = model.config.get_text_config()
    scale = float(getattr(text, "logit_scale", None) or 1.0)
    if getattr(text, "logits_scaling", None):
        scale /= float(text.logits_scaling)
    head = Head(layer.weight, getattr(layer, "bias", None), scale, getattr(text, "final_logit_softcapping", None))
    _check_against_model(head, model)
    return head


@torch.no_grad()
def _check_against_model(head: Head, model: PreTrainedModel) -> None:
    training = model.training
    ids = torch.arange(4, device=model.device)[None] + 5
    model.eval()
    expected = model(input_ids=ids, use_cache=False).logits[0].float()
    found = head.logits(model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0])
    model.train(training)
    tolerance = 1e-4 if model.dtype == torch.float32 else 2e-2
    if (found - expected).abs().max() > tolerance * expected.abs().max().clamp(min=1):
        raise ModelError(f"{type(model).__name__}: its output head is more than a linear layer with scale and soft-cap")


def label_logprobs(
    head: Head, hidden: Tensor, groups: Sequence[Sequence[int]], with_mass: bool = True
) -> tuple[Tensor, Tensor]:
    """Log-probability of each label (all its ids together) at each item's position, and the labels' total mass.

    `hidden` (items, width) -> ((items, groups), (items,)), float32. The differences between groups need only the
    labels' rows of the head; the mass needs one log-sum-exp over the vocabulary. Without it the first result is
    unnormalised (only differences mean anything) and the second NaN.
    """
    flat = torch.tensor([i for group in groups for i in group], device=hidden.device)
    values = head.logits(hidden, flat)  # (items, ids)
    grouped = torch.stack([part.logsumexp(-1) for part in values.split([len(group) for group in groups], -1)], -1)
    if not with_mass:
        return grouped, torch.full(hidden.shape[:1], torch.nan)
    size = max(1, CHUNK_ELEMENTS // head.weight.shape[0])
    parts = zip(hidden.split(size), values.split(size), strict=True)
    total = torch.cat([_log_total(head, states, flat, own) for states, own in parts])
    logprobs = grouped - total[:, None]
    return logprobs, logprobs.logsumexp(-1).exp()


def _log_total(head: Head, hidden: Tensor, ids: Tensor, values: Tensor) -> Tensor:
    """(items,) log-sum-exp over the vocabulary, with the logits `values` (items, ids) that are known already."""
    everything = head.logits(hidden)  # (items, V)
    everything[:, ids] = values  # the same figures in both sums, else rounded logits give a mass above 1
    return everything.logsumexp(-1)


def response_logps(head: Head, hidden: Tensor, row: Row) -> Tensor:
    """Sum of log p(token | all before) over the tokens of each branch: (branches,), in nats, float32.

    The first token of a branch is predicted at the last position of its prefix. Logits exist for one chunk of positions
    at a time.
    """
    device = hidden.device
    predicting = [p for b in row.branches for p in (b.prefix.stop - 1, *range(b.span.start, b.span.stop - 1))]
    targets = [token for b in row.branches for token in row.input_ids[slice(*b.span)]]
    owner = [k for k, b in enumerate(row.branches) for _ in range(*b.span)]
    states, wanted = hidden[torch.tensor(predicting, device=device)], torch.tensor(targets, device=device)
    logps = _TokenLogps.apply(states, head.weight, head.bias, wanted, head)
    sums = torch.zeros(len(row.branches), device=device)
    return sums.index_add(0, torch.tensor(owner, device=device), logps)  # pyright: ignore[reportArgumentType]


class _TokenLogps(torch.autograd.Function):
    """(P, width), (P,) targets -> (P,) log-probabilities, with the gradient to the hidden states found on the way.

    Position t alone decides logp_t, so d logp_t / d hidden_t = (onehot - p) @ weight can be computed while the logits
    of its chunk exist: two products with the head in all, nothing of size P x V is kept or computed twice. Only a head
    that is trained itself needs its probabilities once more in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: Head) -> Tensor:
        head, size = replace(head, weight=weight, bias=bias), max(1, CHUNK_ELEMENTS // weight.shape[0])
        logps: list[Tensor] = []
        gradients: list[Tensor] = []
        for states, wanted in zip(hidden.split(size), targets.split(size), strict=True):
            logp, coefficients = _chunk(head, states, wanted)
            logps.append(logp)
            if ctx.needs_input_grad[0]:
                gradients.append((coefficients.to(weight.dtype) @ weight).to(hidden.dtype))
        ctx.head, ctx.size = head, size
        ctx.save_for_backward(torch.cat(gradients) if gradients else None, hidden, targets)
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        per_token, hidden, targets = ctx.saved_tensors
        upstream = grad_outputs[0][:, None]  # (P, 1)
        of_hidden = None if per_token is None else (per_token * upstream).to(per_token.dtype)
        if not any(ctx.needs_input_grad[1:3]):
            return of_hidden, None, None, None, None
        head, sizes = ctx.head, (hidden.split(ctx.size), targets.split(ctx.size), upstream.split(ctx.size))
        of_weight = torch.zeros_like(head.weight)
        of_bias = None if head.bias is None else torch.zeros_like(head.bias)
        for states, wanted, gradient in zip(*sizes, strict=True):
            coefficients = (_chunk(head, states, wanted)[1] * gradient).to(head.weight.dtype)
            of_weight.addmm_(coefficients.T, states.to(head.weight.dtype))
            if of_bias is not None:
                of_bias += coefficients.sum(0)
        return of_hidden, of_weight, of_bias, None, None


def _chunk(head: Head, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (P,) of the targets, and (onehot - p) times the head's slope: (P, V), float32."""
    logits = head.logits(hidden)
    slope = head.slope(logits)
    wanted, highest = logits.gather(1, targets[:, None]), logits.amax(-1, keepdim=True)
    weights = logits.sub_(highest).exp_()  # in place from here on: a chunk of logits is the largest thing in memory
    total = weights.sum(-1, keepdim=True)
    coefficients = weights.mul_(-1 / total)
    coefficients[torch.arange(len(targets), device=targets.device), targets] += 1
    return (wanted - highest - total.log())[:, 0], coefficients.mul_(slope)
