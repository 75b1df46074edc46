"""The table of ids against a dict."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from selfjudge import ids
from selfjudge.ids import IdTable


def test_it_holds_what_a_dict_holds() -> None:
    """Every key is set twice on average, in an order of its own; half of those asked for are not there."""
    rng = random.Random(0)
    table, expected = IdTable(), dict[str, int]()
    for number in range(6000):
        key = f"prompt-{rng.randrange(3000)}"
        table[key] = expected[key] = number
        assert len(table) == len(expected)
    for index in range(6000):
        key = f"prompt-{index}"
        assert (key in table) is (key in expected)
        assert key not in expected or table[key] == expected[key]


def test_an_id_that_is_not_there() -> None:
    table = IdTable()
    with pytest.raises(KeyError, match="nobody"):
        table["nobody"]
    assert 3 not in table


def test_digests_that_want_the_same_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests 256, 512, ... all begin at slot 0, and 255 at the last one, from where the search goes on at 0."""
    wanted = {"a": 256, "b": 512, "c": 255, "d": 511, "e": 1 << 40}
    monkeypatch.setattr(ids, "_digest", wanted.__getitem__)
    table = IdTable()
    for number, key in enumerate(wanted):
        table[key] = number
    assert [table[key] for key in wanted] == [0, 1, 2, 3, 4]


def test_an_id_takes_at_most_48_bytes() -> None:
    """12 bytes a slot, a quarter to a half of them taken; while it grows the old table stands beside the new one."""
    tracemalloc.start()
    try:
        table = IdTable()
        for number in range(10_000):
            table[f"{number}" * 20] = number
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 48 * 10_000
    assert peak < 72 * 10_000
