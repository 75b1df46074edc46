"""Attention over the trees of a packed row, registered with transformers' AttentionInterface.

    with tree_attention(model):
        hidden = model.base_model(ids, position_ids=positions, segments=segments(row, device, dtype)).last_hidden_state

Every linear layer sees one row of shape (1, tokens); only attention knows of the trees. Small trees are gathered into a
batch with one mask per tree. In a large tree no branch is computed against another: on a CPU all branches attend to the
prefix at once and each to itself, and the two parts are merged by their log-sum-exp, without masks and without copies
of the prefix; on a GPU the branches run one by one over prefix and branch together.

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
    order: Tensor | None
    """(S,) where each token of the row stands among the outputs of the batches, then the large trees; None: as is."""


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
    order = torch.cat(positions).argsort() if batches else None  # large trees alone stand in the row's order
    return Segments(batches, large, order)


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
    output = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return (output if segments.order is None else output[segments.order])[None], None


def _attend_batch(batch: TreeBatch, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """(S, H, D) -> (B, N, H, D)."""
    q, k, v = (x[batch.index].transpose(1, 2) for x in (query, key, value))  # (B, H, N, D)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=batch.mask.to(q.dtype), scale=scaling).transpose(1, 2)


def _attend_large(tree: TreeSpan, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """(1, H, S, D) -> (tokens of the tree, H, D)."""
    whole = slice(tree.prefix.start, _stop(tree))
    q, k, v = query[:, :, whole], key[:, :, whole], value[:, :, whole]
    spans = [slice(start - whole.start, stop - whole.start) for start, stop in (tree.prefix, *tree.branches)]
    attention = _merged if query.device.type == "cpu" else _by_branch
    return attention(q, k, v, spans, scaling)[0].transpose(0, 1)


def _by_branch(query: Tensor, key: Tensor, value: Tensor, spans: list[slice], scaling: float | None) -> Tensor:
    """(1, H, N, D) of a whole tree, `spans` of its prefix and branches -> the same shape."""
    prefix, *branches = spans
    k, v = key[:, :, prefix], value[:, :, prefix]
    parts = [F.scaled_dot_product_attention(query[:, :, prefix], k, v, is_causal=True, scale=scaling)]
    for own in branches:
        keys, values = torch.cat([k, key[:, :, own]], 2), torch.cat([v, value[:, :, own]], 2)
        rows = own.stop - own.start
        mask = torch.ones(rows, keys.shape[2], dtype=torch.bool, device=query.device).tril(k.shape[2])
        parts.append(F.scaled_dot_product_attention(query[:, :, own], keys, values, attn_mask=mask, scale=scaling))
    return torch.cat(parts, 2)


def _merged(query: Tensor, key: Tensor, value: Tensor, spans: list[slice], scaling: float | None) -> Tensor:
    """The same as `_by_branch`, on a CPU."""
    return _MergedAttention.apply(query, key, value, spans, scaling)


class _MergedAttention(torch.autograd.Function):
    """softmax over prefix and branch = both softmaxes weighted by their shares of the sum of exponentials.

    The kernel's own backward pass, given the merged output and the merged log-sum-exp, yields each part's share of the
    gradient: the probabilities that it rebuilds from them are those over the whole.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: list[slice], scaling: float | None
    ) -> Tensor:
        def attend(queries: slice, keys: slice, causal: bool) -> tuple[Tensor, Tensor]:
            parts = query[:, :, queries], key[:, :, keys], value[:, :, keys]
            return _flash(*parts, is_causal=causal, scale=scaling)  # ((1, H, Q, D), (1, H, Q))

        prefix, behind = spans[0], slice(spans[0].stop, None)
        out = query.new_empty(query.shape[0], query.shape[2], query.shape[1], query.shape[3]).transpose(1, 2)
        lse = query.new_empty(query.shape[:3], dtype=torch.float32)
        for span in spans:
            out[:, :, span], lse[:, :, span] = attend(span, span, True)
        shared_out, shared_lse = attend(behind, prefix, False)
        share = torch.sigmoid(shared_lse - lse[:, :, behind])[..., None].to(out.dtype)
        out[:, :, behind].lerp_(shared_out, share)
        torch.logaddexp(lse[:, :, behind], shared_lse, out=lse[:, :, behind])
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.spans, ctx.scaling = spans, scaling
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors

        def gradients(queries: slice, keys: slice, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
            asked = grad_outputs[0][:, :, queries], query[:, :, queries], key[:, :, keys], value[:, :, keys]
            given = out[:, :, queries], lse[:, :, queries]
            return _flash_backward(*asked, *given, 0.0, causal, scale=ctx.scaling)

        prefix, *branches = ctx.spans
        first = gradients(prefix, prefix, True)
        shared = gradients(slice(prefix.stop, None), prefix, False)
        own = [torch.cat(parts, 2) for parts in zip(*(gradients(b, b, True) for b in branches), strict=True)]
        of_query = torch.cat([first[0], shared[0] + own[0]], 2)
        of_key, of_value = (torch.cat([first[i] + shared[i], own[i]], 2) for i in (1, 2))
        return of_query, of_key, of_value, None, None


_flash: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

AttentionInterface.register(NAME, attend)
