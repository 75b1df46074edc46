"""Packed rows: a shared prefix once, its continuations behind it, no padding.

Scoring K responses and training on them read the same prompt K times; a tree holds it once:

    sequences  p p p a a      row  p p p a a b b b
               p p p b b b    pos  0 1 2 3 4 3 4 5

A row holds one or more trees up to a token budget. A token attends to its tree's prefix and to its own branch, up to
itself; `selfjudge.attention` computes exactly that, so that each sequence sees what it would see alone.

    >>> pack([tree_of([[5, 6, 7], [5, 6, 8, 9]])], token_budget=64)[0].position_ids
    [0, 1, 2, 2, 3]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

Ids = Sequence[int]


class Tree(NamedTuple):
    """`prefix` has at least one token, every branch too."""

    prefix: Ids
    branches: tuple[Ids, ...]

    @property
    def num_tokens(self) -> int:
        return len(self.prefix) + sum(len(branch) for branch in self.branches)


class Span(NamedTuple):
    """Tokens `start` (included) to `stop` (excluded) of a row."""

    start: int
    stop: int


class TreeSpan(NamedTuple):
    """Where a tree's prefix and branches lie in its row."""

    prefix: Span
    branches: tuple[Span, ...]


@dataclass(frozen=True)
class Branch:
    """Where one sequence of the input came to lie: `index` counts the branches of all trees in input order."""

    index: int
    prefix: Span
    span: Span


@dataclass(frozen=True)
class Row:
    """One packed row; `input_ids` and `position_ids` have one entry per token."""

    input_ids: list[int]
    position_ids: list[int]
    trees: list[TreeSpan]
    branches: list[Branch]

    @property
    def longest_path(self) -> int:
        """Tokens of the longest single sequence (prefix and branch) in the row."""
        return max(self.position_ids) + 1


def tree_of(sequences: Sequence[Ids]) -> Tree:
    """The sequences as one tree: their longest common prefix, shortened so that every branch keeps a token."""
    shortest = min(len(sequence) for sequence in sequences)
    if shortest < 2:
        raise ValueError(f"a sequence of {shortest} tokens cannot be a tree: prefix and branch need one each")
    length = _common_prefix(sequences, shortest - 1)
    if length == 0:
        raise ValueError("sequences that do not share their first token cannot be a tree")
    return Tree(sequences[0][:length], tuple(sequence[length:] for sequence in sequences))


def trees_of(sequences: Sequence[Ids]) -> list[Tree]:
    """Neighbouring sequences as one tree or as several, whichever way computes the fewest tokens.

    Several questions about each of several responses to a prompt share the prompt, but most of all the response: one
    tree per response then costs less than one for the prompt.
    """
    shared = [_common_prefix(pair, min(map(len, pair)) - 1) for pair in pairwise(sequences)]
    cheapest: list[tuple[int, int]] = [(0, 0)]  # of the first n sequences: tokens, start of their last tree
    for stop in range(1, len(sequences) + 1):
        cheapest.append(min(_last_trees(sequences, shared, cheapest, stop)))
    trees: list[Tree] = []
    stop = len(sequences)
    while stop:
        start = cheapest[stop][1]
        trees.append(tree_of(sequences[start:stop]))
        stop = start
    return trees[::-1]


def _last_trees(
    sequences: Sequence[Ids], shared: Sequence[int], cheapest: Sequence[tuple[int, int]], stop: int
) -> Iterator[tuple[int, int]]:
    """(tokens of the first `stop` sequences, start) for every tree that they could end with.

    `shared` (one per pair of neighbours) is how many tokens the two have in common.
    """
    tokens, prefix = 0, len(sequences[stop - 1])
    for start in range(stop - 1, -1, -1):
        if start < stop - 1:
            prefix = min(prefix, shared[start])
            if prefix == 0:
                return
        tokens += len(sequences[start])
        yield cheapest[start][0] + tokens - (stop - start - 1) * prefix, start


def _common_prefix(sequences: Sequence[Ids], limit: int) -> int:
    first = sequences[0]
    for length in range(limit):
        if any(sequence[length] != first[length] for sequence in sequences):
            return length
    return limit


def pack(trees: Sequence[Tree], token_budget: int) -> list[Row]:
    """Fill rows with the trees in their order, each row up to `token_budget` tokens.

    A tree over the budget is split into trees with the same prefix; a single sequence over the budget gets a row of its
    own.
    """
    rows: list[Row] = []
    current: list[tuple[int, Tree]] = []
    for index, tree in _split_all(trees, token_budget):
        if current and sum(t.num_tokens for _, t in current) + tree.num_tokens > token_budget:
            rows.append(_row(current))
            current = []
        current.append((index, tree))
    return [*rows, _row(current)] if current else rows


def _split_all(trees: Sequence[Tree], token_budget: int) -> Iterator[tuple[int, Tree]]:
    """Yields (index of the first branch, tree of at most `token_budget` tokens)."""
    index = 0
    for tree in trees:
        kept: list[Ids] = []
        for branch in tree.branches:
            if kept and Tree(tree.prefix, (*kept, branch)).num_tokens > token_budget:
                yield index, Tree(tree.prefix, tuple(kept))
                index, kept = index + len(kept), []
            kept.append(branch)
        yield index, Tree(tree.prefix, tuple(kept))
        index += len(kept)


def _row(trees: Sequence[tuple[int, Tree]]) -> Row:
    row = Row([], [], [], [])
    for first_index, tree in trees:
        prefix = _extend(row, tree.prefix, 0)
        spans = tuple(_extend(row, branch, len(tree.prefix)) for branch in tree.branches)
        row.trees.append(TreeSpan(prefix, spans))
        row.branches.extend(Branch(first_index + k, prefix, span) for k, span in enumerate(spans))
    return row


def _extend(row: Row, ids: Ids, position: int) -> Span:
    start = len(row.input_ids)
    row.input_ids.extend(ids)
    row.position_ids.extend(range(position, position + len(ids)))
    return Span(start, len(row.input_ids))
