"""Packed rows: every sequence can be read back, positions are its own, budgets hold."""

import random
from itertools import pairwise

import pytest

from selfjudge.rows import Row, Tree, pack, tree_of, trees_of


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


@pytest.mark.parametrize(("prompt", "trees", "tokens"), [(10, [2, 2], 52), (30, [4], 82)])
def test_several_questions_about_several_responses(prompt: int, trees: list[int], tokens: int):
    """Two responses of 10 tokens, two questions of 3 about each.

    A tree per response holds 2 (p + 10 + 3 + 3), one for all p + 4 (10 + 3): 52 and 62 tokens for a prompt of 10, 92
    and 82 for one of 30.
    """
    sequences = [[1] * prompt + [2 + r] * 10 + [5 + q] * 3 for r in range(2) for q in range(2)]
    found = trees_of(sequences)
    assert [len(tree.branches) for tree in found] == trees
    assert sum(tree.num_tokens for tree in found) == tokens
    assert [[*tree.prefix, *branch] for tree in found for branch in tree.branches] == sequences


def test_trees_of_compute_the_fewest_tokens():
    """Against all 128 ways to cut eight random sequences into stretches of neighbours."""
    rng = random.Random(0)
    for _ in range(20):
        sequences = [[7, *rng.choices([1, 2], k=rng.randint(1, 6))] for _ in range(8)]
        ways = []
        for cuts in range(1 << 7):
            borders = [0, *(i + 1 for i in range(7) if cuts >> i & 1), 8]
            ways.append(sum(tree_of(sequences[a:b]).num_tokens for a, b in pairwise(borders)))
        found = trees_of(sequences)
        assert sum(tree.num_tokens for tree in found) == min(ways)
        assert [[*tree.prefix, *branch] for tree in found for branch in tree.branches] == sequences


def test_sequences_that_differ_at_once_are_trees_of_their_own():
    assert trees_of([[1, 2, 3], [4, 2, 3], [4, 2]]) == [Tree([1, 2], ([3],)), Tree([4], ([2, 3], [2]))]


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
