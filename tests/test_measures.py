"""Figures of a judge on labelled pairs, by hand and against the functions that they are made of."""

from __future__ import annotations

import math
import random

import pytest

from selfjudge import stats
from selfjudge.measures import BOOTSTRAP_SEED, JudgedPairs, agreement_figures, pair_differences
from selfjudge.records import Example, Message, Response, Score


def scored(log_odds: list[float], gold: tuple[int, ...] | None, kinds: list[str] | None = None) -> Example:
    responses = tuple(Response(str(index)) for index in range(len(log_odds)))
    tags = {"kinds": kinds} if kinds else {}
    scores = tuple(Score(value) for value in log_odds)
    return Example("1", (Message("user", "?"),), responses=responses, gold=gold, scores=scores, tags=tags)


def test_every_right_response_meets_every_wrong_one() -> None:
    example = scored([3.0, 1.0, -1.0, 2.0], (0, 3), ["", "slip", "joke", ""])
    assert pair_differences(example) == [("slip", 2.0), ("joke", 4.0), ("slip", 1.0), ("joke", 3.0)]
    assert pair_differences(scored([3.0, 1.0], None)) == pair_differences(scored([3.0, 1.0], ())) == []


def test_accuracy_overall_and_by_kind() -> None:
    """Slips: one right, one wrong, one missing; jokes: one right, one tied; the pair without a kind is wrong."""
    pairs = JudgedPairs()
    pairs.add([("slip", 2.0), ("joke", 1.0)])
    pairs.add([])
    pairs.add([("slip", -2.0), ("joke", 0.0)])
    pairs.add([("slip", math.nan), ("", -1.0)])
    found = pairs.figures()
    values = {name: found[name]["value"] for name in found if name.startswith("judge_accuracy")}
    assert list(found)[:3] == ["judge_accuracy", "judge_accuracy_joke", "judge_accuracy_slip"]
    assert values == {"judge_accuracy": 0.5, "judge_accuracy_joke": 0.75, "judge_accuracy_slip": 0.5}
    assert (found["judge_strict"], found["pairs"], found["ties"]) == (pytest.approx(2 / 6), 5, 1)
    assert [found[name]["n"] for name in values] == [5, 2, 2]


def test_no_pairs_no_figures() -> None:
    pairs = JudgedPairs()
    pairs.add([])
    assert pairs.figures() == {}


def test_the_interval_draws_whole_prompts() -> None:
    rng = random.Random(0)
    pairs, differences, prompts = JudgedPairs(), list[float](), list[int]()
    for prompt in range(30):
        own = [rng.gauss(0.5, 1)] * rng.randint(1, 4)
        pairs.add(("", value) for value in own)
        differences += own
        prompts += [prompt] * len(own)
    expected = stats.mean_interval(stats.credit(differences), prompts, seed=BOOTSTRAP_SEED)
    alone = stats.mean_interval(stats.credit(differences), seed=BOOTSTRAP_SEED)
    found = pairs.figures()["judge_accuracy"]
    assert (found["value"], found["low"], found["high"]) == (expected.estimate, expected.low, expected.high)
    assert found["high"] - found["low"] > 1.2 * (alone.high - alone.low)


def test_rows_of_one_prompt_are_drawn_together_in_any_order() -> None:
    """Groups are drawn in the order of their numbers; taken for a prompt each, the rows give other bounds."""
    rng = random.Random(1)
    rows = [(rng.choice([1.0, -1.0]), rng.randrange(12)) for _ in range(40)]
    ordered, turned, alone = JudgedPairs(), JudgedPairs(), JudgedPairs()
    for value, prompt in rows:
        ordered.add([("", value)], prompt)
        alone.add([("", value)])
    for value, prompt in reversed(rows):
        turned.add([("", value)], prompt)
    values, prompts = zip(*rows, strict=True)
    expected = stats.mean_interval(stats.credit(values), prompts, seed=BOOTSTRAP_SEED)
    found = ordered.figures()["judge_accuracy"]
    assert (found["low"], found["high"]) == (expected.low, expected.high)
    assert found == turned.figures()["judge_accuracy"]
    assert found != alone.figures()["judge_accuracy"]


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
