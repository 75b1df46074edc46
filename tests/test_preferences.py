"""Preferences on disk: exactly what was put in, whatever else memory holds."""

from __future__ import annotations

import math
import os
import random
import tracemalloc
from pathlib import Path

import pytest

from selfjudge.errors import StepError
from selfjudge.preferences import Preference, on_disk


def preference(number: int) -> Preference:
    rng = random.Random(number)
    count = rng.randint(2, 5)
    answers = tuple(tuple(rng.randrange(1 << 18) for _ in range(rng.randint(1, 40))) for _ in range(count))
    strengths = tuple(rng.gauss(0, 3) for _ in range(count))
    prompt = tuple(rng.randrange(1 << 18) for _ in range(rng.randint(1, 40)))
    return Preference(f"p\u00e9{number}", prompt, answers, strengths, tuple(-rng.random() for _ in range(count)))


def test_they_come_back_as_they_were_in_any_order(tmp_path: Path) -> None:
    wanted = [preference(number) for number in range(50)]
    with on_disk(tmp_path) as found:
        for number, one in enumerate(wanted):
            found.append(one)
            assert len(found) == number + 1
            assert found[number // 2] == wanted[number // 2]  # read between two writes
        assert [found[number] for number in reversed(range(50))] == wanted[::-1]
        assert list(found) == wanted
        assert [found[3].tree, found[3].longest] == [wanted[3].tree, wanted[3].longest]
        with pytest.raises(IndexError):
            found[50]


def test_unknown_references_stay_unknown(tmp_path: Path) -> None:
    with on_disk(tmp_path) as found:
        found.append(Preference("1", (1,), ((2,), (3,)), (1.0, -1.0), (math.nan, -2.5)))
        assert math.isnan(found[0].ref_logps[0])
        assert found[0].ref_logps[1] == -2.5


def test_the_longest_response_counts() -> None:
    assert Preference("1", (1, 2, 3), ((4,), (5, 6), (7,)), (1.0, 0.0, -1.0), (0.0, 0.0, 0.0)).longest == 5


def test_the_folder_is_left_as_it_was(tmp_path: Path) -> None:
    with on_disk(tmp_path) as found:
        found.append(preference(0))
        assert list(tmp_path.iterdir()) == []


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with on_disk(tmp_path) as found:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(StepError, match=r"tokens cannot be written \(No space left on device\); make room there"):
            found.append(preference(0))
        monkeypatch.undo()
        assert len(found) == 0


def test_memory_does_not_hold_them(tmp_path: Path) -> None:
    wanted = [preference(number) for number in range(2000)]
    with on_disk(tmp_path) as found:
        tracemalloc.start()
        try:
            for one in wanted:
                found.append(one)
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(found) == 2000
    assert held < 2000 * 8 * 2
