"""Caches whose rows come and go, by hand and against the library's own layer."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from selfjudge.kv_cache import ROOM, GrowingLayer, fresh, regroup, subset, takes_rows


def states(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Keys of width 4 and values of width 3 (rows, 2 heads, columns, width)."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(rows, 2, columns, width, generator=generator) for width in (4, 3))
    return keys, values


def filled(rows: int, columns: int, seed: int = 0) -> Cache:
    cache = fresh(DynamicCache(config=LlamaConfig(num_hidden_layers=1)))
    cache.update(*states(rows, columns, seed), 0)
    return cache


def test_appending_is_that_of_the_library():
    """Past the room of one allocation, one token and many at a time."""
    ours, theirs = GrowingLayer(), DynamicLayer()
    for step, columns in enumerate([5, *[1] * (ROOM + 2), ROOM + 3, 1]):
        new = states(3, columns, step)
        for found, expected in zip(ours.update(*new), theirs.update(*new), strict=True):
            assert torch.equal(found, expected)
    assert ours.get_seq_length() == theirs.get_seq_length()
    assert ours.get_mask_sizes(1) == theirs.get_mask_sizes(1)


def test_a_new_token_does_not_copy_the_old_ones():
    cache = filled(2, 4)
    layer = cache.layers[0]
    cache.update(*states(2, 1), 0)
    where = layer.keys.data_ptr()
    for _ in range(10):
        cache.update(*states(2, 1), 0)
    assert layer.keys.data_ptr() == where


def test_rows_are_taken_out_and_put_in_aligned_on_the_right():
    cache, other = filled(3, 4), filled(2, 6, seed=1)
    keys, added = states(3, 4)[0], states(2, 6, seed=1)[0]
    regroup(cache, torch.tensor([2, 0]), 5, other)
    found = cache.layers[0].keys
    assert found.shape == (4, 2, 5, 4)
    assert torch.equal(found[:2, :, 1:], keys[[2, 0]])
    assert torch.equal(found[2:], added[:, :, 1:])
    assert not found[:2, :, 0].any()


def test_a_subset_leaves_the_cache_as_it_was():
    cache = filled(3, 4)
    part = subset(cache, torch.tensor([1]), 2)
    part.update(*states(1, 1), 0)
    assert torch.equal(cache.layers[0].keys, states(3, 4)[0])
    assert torch.equal(part.layers[0].keys[:, :, :2], states(3, 4)[0][[1], :, 2:])


def test_a_sliding_window_takes_no_rows():
    sliding = fresh(DynamicCache(config=LlamaConfig(num_hidden_layers=2, sliding_window=8)))
    assert not takes_rows(sliding)
    assert takes_rows(filled(1, 1))
    sliding.update(*states(3, 4), 0)
    sliding.update(*states(3, 4, seed=1), 1)
    regroup(sliding, torch.tensor([1]), 2)
    assert torch.equal(sliding.layers[0].keys, states(3, 4)[0][[1]])
