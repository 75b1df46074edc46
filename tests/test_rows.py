"""Packed rows: every sequence can be read back, positions are its own, budgets hold."""

import random

import pytest

from selfjudge.rows import Row, Tree, pack, tree_of


def paths(rows: list[Row]) -> dict[int, list[tuple[int, int]]]:
    """Per branch index, the (token, position) pairs of its prefix and itself."""
    found: dict[int, list[tuple[int, int]]] = {}
    for row in rows:
        both = list(zip(row.input_ids, row.position_ids, strict=True))
        for branch in row.branches:
            assert branch.index not in found
            found[branch.index] = both[slice(*branch.prefix)] + both[slice(*branch.span)]
    return found


def test_the_example_of_the_module():
    row = pack([tree_of([[7, 7, 7, 1, 2], [7, 7, 7, 3, 4, 5]])], token_budget=64)[0]
    assert row.input_ids == [7, 7, 7, 1, 2, 3, 4, 5]
    assert row.position_ids == [0, 1, 2, 3, 4, 3, 4, 5]
    assert [tuple(branch.span) for branch in row.branches] == [(3, 5), (5, 8)]
    assert row.longest_path == 6


def test_tree_of_leaves_every_branch_a_token():
    assert tree_of([[1, 2, 3], [1, 2, 3]]) == Tree([1, 2], ([3], [3]))
    assert tree_of([[1, 2], [1, 2, 3]]) == Tree([1], ([2], [2, 3]))
    assert tree_of([[1, 2, 3]]) == Tree([1, 2], ([3],))


def test_tree_of_refuses_a_sequence_of_one():
    with pytest.raises(ValueError, match="a sequence of 1 tokens"):
        tree_of([[1, 2], [1]])


def test_sequences_that_differ_at_once_are_refused():
    """Their tree would hold the first sequence's token as prefix of all."""
    with pytest.raises(ValueError, match="share"):
        tree_of([[1, 2, 3], [4, 2, 3]])


def test_a_too_large_tree_is_split_with_its_prefix_repeated():
    tree = Tree([1, 2, 3], ([4, 4], [5, 5], [6]))
    rows = pack([tree], token_budget=7)
    assert [row.input_ids for row in rows] == [[1, 2, 3, 4, 4, 5, 5], [1, 2, 3, 6]]
    assert [[branch.index for branch in row.branches] for row in rows] == [[0, 1], [2]]


def test_a_single_sequence_over_the_budget_gets_its_own_row():
    rows = pack([Tree([1], ([2],)), Tree([1, 2, 3], ([4] * 9,)), Tree([1], ([2],))], token_budget=4)
    assert [len(row.input_ids) for row in rows] == [2, 12, 2]


def test_trees_share_a_row_up_to_the_budget():
    trees = [Tree([k], ([k, k],)) for k in range(5)]  # 3 tokens each
    assert [len(row.trees) for row in pack(trees, token_budget=6)] == [2, 2, 1]
    assert [len(row.trees) for row in pack(trees, token_budget=15)] == [5]
    assert pack([], token_budget=15) == []


@pytest.mark.parametrize("seed", range(30))
def test_every_path_is_recovered(seed: int):
    """Random trees and budgets: tokens, positions 0, 1, 2, ... and order; no row over the budget but a lone path."""
    rng = random.Random(seed)
    sequences: list[list[int]] = []
    trees: list[Tree] = []
    for _ in range(rng.randint(1, 8)):
        prefix = [rng.randrange(4) for _ in range(rng.randint(1, 9))]
        group = [prefix + [rng.randrange(4) for _ in range(rng.randint(1, 9))] for _ in range(rng.randint(1, 5))]
        sequences += group
        trees.append(tree_of(group))
    budget = rng.randint(2, 60)
    rows = pack(trees, budget)
    expected = {i: [(token, place) for place, token in enumerate(ids)] for i, ids in enumerate(sequences)}
    assert paths(rows) == expected
    assert [branch.index for row in rows for branch in row.branches] == list(range(len(sequences)))
    assert all(len(row.input_ids) <= budget or len(row.branches) == 1 for row in rows)
