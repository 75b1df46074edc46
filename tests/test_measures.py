"""Figures from rows, by hand."""

from __future__ import annotations

import math

import pytest

from selfjudge.measures import agreement_figures
from selfjudge.records import Example, Message, Response, Score

ASK = (Message("user", "?"),)


def example(texts: str, scores: list[float], **known: object) -> Example:
    """One response per letter of `texts`."""
    responses = tuple(Response(letter) for letter in texts)
    return Example("x", ASK, None, responses, scores=tuple(Score(score) for score in scores), **known)  # type: ignore[arg-type]


def test_agreement_by_hand():
    """Orders abc and acb: two of three pairs agree, tau 1/3; same best. Reversed: tau -1, another best. Mean -1/3."""
    pairs = [
        (example("abc", [3, 2, 1], reference="b"), example("abc", [9, 1, 2])),
        (example("ab", [1, 0], gold=(0,)), example("ab", [0, 1])),
    ]
    figures = agreement_figures(pairs)
    assert figures["kendall_tau"]["value"] == pytest.approx((1 / 3 - 1) / 2)
    assert figures["same_best"]["value"] == 0.5
    assert figures["best_right_in_place"]["value"] == 0.5  # a is not b; a is gold
    assert figures["best_right_separate"]["value"] == 0.0
    assert {figure["n"] for figure in figures.values()} == {2}


def test_repeated_and_missing_ones():
    """Equal texts count once, whatever rounding makes of their scores; nothing to rank and NaN are left out."""
    repeated = example("aab", [1.0, 1.0000001, 0]), example("aab", [1, 1, 0])
    same = example("aa", [1, 2]), example("aa", [2, 1])
    missing = example("ab", [1, math.nan]), example("ab", [1, 0])
    figures = agreement_figures([repeated, same, missing])
    assert figures["kendall_tau"] == pytest.approx({"value": 1, "low": math.nan, "high": math.nan, "n": 1}, nan_ok=True)
    assert figures["same_best"]["n"] == 1
    assert "best_right_separate" not in figures
