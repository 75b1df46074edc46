"""Floating-point operations that a piece of work needs at least, a multiply-add counting as two.

    2 * weights of the linear layers * tokens        each prompt once, each response token once, no padding
    + 4 * layers * heads * head_dim * attended pairs (queries with keys, weights with values)
    + 2 * width * vocabulary * positions             that the output head must look at

A training step under LoRA needs twice the first and the last (the gradient of the weights themselves is not wanted) and
three times the attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bench.models import Shape


class Lengths(NamedTuple):
    """Tokens of a prompt and of each of the continuations that share it."""

    prompt: int
    responses: tuple[int, ...]


def tokens(trees: Sequence[Lengths]) -> int:
    """Tokens with each prompt counted once."""
    return sum(tree.prompt + sum(tree.responses) for tree in trees)


def attended_pairs(trees: Sequence[Lengths]) -> float:
    """(query, key) pairs under the causal mask, each prompt once."""
    return sum(_pairs(0, tree.prompt) + sum(_pairs(tree.prompt, length) for length in tree.responses) for tree in trees)


def _pairs(before: int, length: int) -> float:
    return length * before + length * (length + 1) / 2


def forward(shape: Shape, trees: Sequence[Lengths], head_positions: int) -> float:
    """Operations of one forward pass."""
    return (
        2 * shape.linear_parameters * tokens(trees)
        + _attention(shape, trees)
        + 2 * shape.hidden_size * shape.vocab_size * head_positions
    )


def lora_step(shape: Shape, trees: Sequence[Lengths]) -> float:
    """Operations of forward and backward pass with frozen weights; the adapter's own are left out (a few percent)."""
    positions = sum(sum(tree.responses) for tree in trees)
    return 2 * forward(shape, trees, positions) + _attention(shape, trees)


def _attention(shape: Shape, trees: Sequence[Lengths]) -> float:
    return 4 * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim * attended_pairs(trees)
