"""Attention over the trees of a packed row, registered with transformers' AttentionInterface.

    with tree_attention(model):
        hidden = model.base_model(ids, position_ids=positions, segments=segments(row, device, dtype)).last_hidden_state

Every linear layer sees one row of shape (1, tokens); only attention knows of the trees. Small trees are gathered into a
batch with one mask per tree; a large tree runs branch by branch, so that no branch is computed against another.

Shapes: S tokens in the row, H query heads, D head width, B trees in a batch, N tokens of the largest tree of a batch.
"""

# pyright: reportPrivateUsage=false
# (transformers has no public name for a model's current attention implementation)

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from selfjudge.errors import ModelError
from selfjudge.rows import Row, TreeSpan

NAME = "selfjudge_trees"
LARGE = 256  # tokens; above it a dense mask over the tree computes more than it saves in calls
SMALLEST = 16


@dataclass(frozen=True)
class TreeBatch:
    """Trees of similar size: `index` (B, N) row positions, `mask` (B, 1, N, N) added to the logits, `valid` (B, N)."""

    index: Tensor
    mask: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Segments:
    """What attention must know of a row; made once, used by every layer."""

    batches: list[TreeBatch]
    large: list[TreeSpan]
    order: Tensor
    """(S,) where each token of the row stands among the outputs of all batches, then all large trees."""


def unsupported(config: PretrainedConfig, longest: int) -> str | None:
    """Why a model cannot run on packed rows of paths up to `longest` tokens; None when it can."""
    text = config.get_text_config()
    other = (
        sorted(set(text.layer_types or ()) - {"full_attention", "sliding_attention"}) if "layer_types" in text else []
    )
    if other:
        return f"it has {', '.join(other)} layers"
    if getattr(text, "attn_logit_softcapping", None):
        return "it caps its attention logits"
    window = getattr(text, "sliding_window", None)
    slides = getattr(text, "use_sliding_window", True)
    if window is not None and slides and window < longest:
        return f"its sliding window of {window} tokens is shorter than {longest}"
    return None


@contextmanager
def tree_attention(model: PreTrainedModel) -> Generator[None]:
    """Within it, the model's attention is the one of this module; the former implementation comes back after it."""
    former = model.config._attn_implementation or "eager"
    try:
        model.set_attn_implementation(NAME)
        if model.config._attn_implementation != NAME:
            raise ModelError(f"{type(model).__name__} does not take a custom attention function")
        yield
    finally:
        model.set_attn_implementation(former)


def segments(row: Row, device: torch.device, dtype: torch.dtype) -> Segments:
    """The row's trees, those of similar size batched together."""
    by_size: dict[int, list[TreeSpan]] = {}
    large: list[TreeSpan] = []
    for tree in row.trees:
        size = _stop(tree) - tree.prefix.start
        if size > LARGE:
            large.append(tree)
        else:
            by_size.setdefault(max(SMALLEST, 1 << (size - 1).bit_length()), []).append(tree)
    batches = [_batch(trees, device, dtype) for trees in by_size.values()]
    positions = [batch.index[batch.valid] for batch in batches]
    positions += [torch.arange(tree.prefix.start, _stop(tree), device=device) for tree in large]
    return Segments(batches, large, torch.cat(positions).argsort())


def _stop(tree: TreeSpan) -> int:
    return tree.branches[-1].stop


def _batch(trees: Sequence[TreeSpan], device: torch.device, dtype: torch.dtype) -> TreeBatch:
    size = max(_stop(tree) - tree.prefix.start for tree in trees)
    index = torch.zeros(len(trees), size, dtype=torch.long)
    branch = torch.full((len(trees), size), -1)  # 0: prefix, 1..K: branch, -1: beyond the tree
    for b, tree in enumerate(trees):
        start = tree.prefix.start
        index[b, : _stop(tree) - start] = torch.arange(start, _stop(tree))
        for number, span in enumerate((tree.prefix, *tree.branches)):
            branch[b, span.start - start : span.stop - start] = number
    query, key = branch[:, :, None], branch[:, None, :]
    allowed = ((query == key) | (key == 0)) & torch.ones(size, size, dtype=torch.bool).tril()
    allowed[..., 0] |= branch < 0  # a slot without a token may look anywhere: its result is dropped
    mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
    return TreeBatch(index.to(device), mask[:, None].to(device), (branch >= 0).to(device))


def attend(
    module: nn.Module,
    query: Tensor,  # (1, H, S, D)
    key: Tensor,  # (1, H or fewer, S, D)
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: Segments | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls in each layer; returns ((1, S, H, D), None)."""
    if softcap is not None or s_aux is not None:
        raise ModelError(f"{type(module).__name__} caps its attention logits or has attention sinks")
    if segments is None or attention_mask is not None:
        raise ModelError(f"{type(module).__name__} does not pass the row's segments on to its attention")
    if dropout:
        raise ModelError("packed rows have no attention dropout; set it to 0")
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    queries, keys, values = (x[0].transpose(0, 1) for x in (query, key, value))  # (S, H, D)
    outputs = [_attend_batch(batch, queries, keys, values, scaling)[batch.valid] for batch in segments.batches]
    outputs += [_attend_large(tree, query, key, value, scaling) for tree in segments.large]
    return torch.cat(outputs)[segments.order][None], None


def _attend_batch(batch: TreeBatch, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """(S, H, D) -> (B, N, H, D)."""
    q, k, v = (x[batch.index].transpose(1, 2) for x in (query, key, value))  # (B, H, N, D)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=batch.mask.to(q.dtype), scale=scaling).transpose(1, 2)


def _attend_large(tree: TreeSpan, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """(1, H, S, D) -> (tokens of the tree, H, D)."""
    prefix = slice(*tree.prefix)
    k, v = key[:, :, prefix], value[:, :, prefix]
    parts = [F.scaled_dot_product_attention(query[:, :, prefix], k, v, is_causal=True, scale=scaling)]
    for span in tree.branches:
        own = slice(*span)
        keys, values = torch.cat([k, key[:, :, own]], 2), torch.cat([v, value[:, :, own]], 2)
        rows = span.stop - span.start
        mask = torch.ones(rows, keys.shape[2], dtype=torch.bool, device=query.device).tril(k.shape[2])
        parts.append(F.scaled_dot_product_attention(query[:, :, own], keys, values, attn_mask=mask, scale=scaling))
    return torch.cat(parts, 2)[0].transpose(0, 1)


AttentionInterface.register(NAME, attend)
