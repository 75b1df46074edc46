"""Key-value caches whose rows come and go while they are being decoded, on top of transformers' own cache classes.

    cache = fresh(empty)                            # tokens are appended in place where its layers allow
    regroup(cache, rows, columns)                   # rows taken out or repeated, columns of padding cut off
    regroup(cache, rows, columns, added=other)      # the rows of another prefill put behind them, aligned on the right

Only plain caches (full attention in every layer) take in rows: in a sliding window or a recurrent state the rows of
another prefill do not stand at the same place. Rows can be taken out of any cache.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

ROOM = 64  # tokens by which a cache grows at a time


class GrowingLayer(DynamicLayer):
    """Keys and values (rows, heads, columns, width) with room behind them, so that a new token copies no old ones.

    The library's own layer concatenates at every token; its static one computes over the greatest length throughout.
    """

    keys: Tensor
    values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Appends (rows, heads, new columns, width); returns all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._hold(key_states[:, :, :0], value_states[:, :, :0], 0)
        held = self.keys.shape[2]
        total = held + key_states.shape[2]
        if total > self._room[0].shape[2]:
            rows = torch.arange(len(key_states), device=key_states.device)
            keys, values = (_aligned([(part, rows)], held, total + ROOM) for part in (self.keys, self.values))
            self._hold(keys, values, held)
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, held:total] = new
        self._hold(*self._room, total)
        return self.keys, self.values

    def _hold(self, keys: Tensor, values: Tensor, columns: int) -> None:
        """Takes over two tensors, of which the first `columns` columns count and the rest is room."""
        self._room = (keys, values)
        self.keys, self.values = keys[:, :, :columns], values[:, :, :columns]

    def regrouped(self, rows: Tensor, columns: int, added: GrowingLayer | None = None) -> GrowingLayer:
        """A layer of the chosen rows and behind them all rows of `added`: of both the last `columns` columns."""
        keys, values = [(self.keys, rows)], [(self.values, rows)]
        if added is not None:
            all_rows = torch.arange(len(added.keys), device=rows.device)
            keys.append((added.keys, all_rows))
            values.append((added.values, all_rows))
        layer = GrowingLayer()
        layer.lazy_initialization(self.keys, self.values)
        layer._hold(_aligned(keys, columns, columns + ROOM), _aligned(values, columns, columns + ROOM), columns)
        return layer


def _aligned(parts: Sequence[tuple[Tensor, Tensor]], columns: int, size: int) -> Tensor:
    """Chosen rows of several tensors in one of `size` columns, all of them ending at `columns`; zeros before them."""
    first = parts[0][0]
    room = first.new_empty(sum(len(rows) for _, rows in parts), first.shape[1], size, first.shape[3])
    start = 0
    for held, rows in parts:
        target = room[start : start + len(rows), :, :columns]
        length = min(columns, held.shape[2])
        target[:, :, : columns - length] = 0
        target[:, :, columns - length :] = held[rows, :, held.shape[2] - length :]
        start += len(rows)
    return room


def fresh(empty: Cache) -> Cache:
    """A copy of an empty cache; where all of its layers are plain, with growing ones."""
    cache = copy.deepcopy(empty)
    if cache.layers and all(type(layer) is DynamicLayer for layer in cache.layers):
        cache.layers[:] = [GrowingLayer() for _ in cache.layers]
    return cache


def takes_rows(cache: Cache) -> bool:
    """Whether rows of another prefill can be added."""
    return bool(cache.layers) and all(isinstance(layer, GrowingLayer) for layer in cache.layers)


def regroup(cache: Cache, rows: Tensor, columns: int, added: Cache | None = None) -> None:
    """Puts the chosen rows (rows,) in place of all, then those of `added`; a plain cache keeps its last `columns`."""
    if not takes_rows(cache):
        cache.reorder_cache(rows)  # pyright: ignore[reportArgumentType]
        return
    for index, layer in enumerate(cache.layers):  # one after the other: only one layer is in memory twice
        other: Any = None if added is None else added.layers[index]
        cache.layers[index] = layer.regrouped(rows, columns, other)  # pyright: ignore


def subset(cache: Cache, rows: Tensor, columns: int) -> Cache:
    """A copy of some rows of a plain cache, to be continued on its own."""
    other = copy.copy(cache)
    other.layers = list(cache.layers)
    regroup(other, rows, columns)
    return other
