"""The pairwise judges: verdicts, log-odds and votes by hand, both orders, and the same on a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from test_judges import ASK, Scripted, example
from test_rating import WIDE, Writer, several

from selfjudge.backends import BackendOptions, LabelRequest, LabelResult, open_backend
from selfjudge.checks import build_checked
from selfjudge.config import JudgeConfig
from selfjudge.errors import ConfigError
from selfjudge.judges import JUDGES, JudgeSetup
from selfjudge.judges.pairwise import (
    NO_VERDICT,
    NOTHING_TO_COMPARE,
    both_orders,
    comparisons,
    order_flips,
    parse_verdict,
)
from selfjudge.records import Example
from selfjudge.steps.judge import JudgeFigures

Odds = Callable[[str, str], float]


class Comparer(Scripted):
    """Log-odds of A against B from a function of the two texts; label mass .9, truncated where a text is `long`."""

    def __init__(self, odds: Odds) -> None:
        super().__init__({})
        self.odds = odds

    def label_logprobs(self, requests: Sequence[LabelRequest]) -> list[LabelResult]:
        self.asked += requests
        return [LabelResult((self.odds(*r.quoted.texts), 0.0), 0.9, "long" in r.quoted.texts) for r in requests]


def compared(odds: Odds, asked: Example, **setup: object) -> Example:
    return JUDGES["pairwise"].make(JudgeSetup((Comparer(odds),), **setup))([asked])[0]  # type: ignore[arg-type]


def voted(write: Callable[[str], str], asked: Example) -> Example:
    return JUDGES["pairwise-verdict"].make(JudgeSetup((Writer(write),)))([asked])[0]


def values(scored: Example) -> list[float]:
    return [score.value for score in scored.scores]


def sides(shown: str) -> tuple[str, str]:
    """The texts shown as A and B."""
    first, rest = shown.split("Response A:\n")[1].split("\n\nResponse B:\n")
    return first, rest.split("\n\n")[0]


@pytest.mark.parametrize(
    ("completion", "verdict"),
    [
        *[(text, 1) for text in ("[[A]]", "A", " A\n", "**A**", "Answer: A", "Verdict: A", "**Verdict:** A", "A.")],
        *[(text, 0) for text in ("[[B]]", "B", "Answer: B", "Verdict: **B**", "Verdict: Response B", "Response B")],
        *[(text, 0.5) for text in ("[[C]]", "Tie", "tie.", "Verdict: Tie", "[[Tie]]", "Answer: C", "It's so.\n\nTie")],
        ("The answer is a tie", 0.5),
        ("The verdict is [[B]]", 0),
        ("Verdict: A\nNo, wait.\nVerdict: B", 0),
        ("[[A]]\nVerdict: B", 1),
        ("Verdict: B\n\nA", 0),
        *[
            (text, None)
            for text in ("", "Neither.", "Answer:", "Verdict: A or B", "A/B", "Apples", "Answer: Apples", "D")
        ],
        ("A is as good as B.", None),
    ],
)
def test_verdicts(completion: str, verdict: float | None) -> None:
    assert parse_verdict(completion) == verdict


def test_two_responses_by_hand() -> None:
    """x first: 3 nats for x; y first: 1 nat for y. d = (3 - 1) / 2 = 1, so the scores are 1/2 and -1/2."""
    scored = compared(lambda first, _: {"x": 3.0, "y": 1.0}[first], example("x", "y"))
    assert values(scored) == [0.5, -0.5]
    assert scored.scores[0].evidence == {"against": {"1": [3.0, -1.0]}}
    assert scored.scores[1].evidence == {"against": {"0": [1.0, -3.0]}}
    assert [score.label_mass for score in scored.scores] == pytest.approx([0.9, 0.9])
    assert list(order_flips(scored)) == [1.0]
    assert list(both_orders(scored)) == [(3.0, -1.0)]


def test_three_responses_are_the_least_squares_fit() -> None:
    """d_xy = 2, d_xz = 3, d_yz = 4 cannot all hold: s = ((2 + 3)/3, (-2 + 4)/3, (-3 - 4)/3) = (5, 2, -7)/3."""
    table = {("x", "y"): 2.0, ("x", "z"): 3.0, ("y", "z"): 4.0}
    table |= {(second, first): -odds for (first, second), odds in table.items()}
    scored = compared(lambda first, second: table[first, second], example("x", "y", "z", "x"))
    assert values(scored) == pytest.approx([5 / 3, 2 / 3, -7 / 3, 5 / 3])
    assert list(order_flips(scored)) == [0.0, 0.0, 0.0]


def test_identical_responses_are_shown_once() -> None:
    backend = Comparer(lambda first, second: float(first < second))
    judge = JUDGES["pairwise"].make(JudgeSetup((backend,)))
    scored = judge([example("x", "y", "x"), replace(example("x", "x"), id="e2")])
    assert [request.quoted.texts for request in backend.asked] == [("x", "y"), ("y", "x")]
    assert scored[0].scores[0] == scored[0].scores[2]
    assert [score.reason for score in scored[1].scores] == [NOTHING_TO_COMPARE] * 2
    assert all(map(math.isnan, values(scored[1])))


def test_a_cut_flags_both() -> None:
    scored = compared(lambda *_: 1.0, example("x", "long", "y"))
    assert [score.truncated for score in scored.scores] == [True, True, True]
    assert not any(score.truncated for score in compared(lambda *_: 1.0, example("x", "y")).scores)


def test_a_liking_for_the_first_place_gives_a_tie() -> None:
    """A judge that always says A says nothing: all scores are equal, and every order turned the verdict around."""
    asked = replace(example("b", "a", "c"), gold=(0,))
    for scored in (compared(lambda *_: 2.5, asked), voted(lambda _: "Verdict: A", asked)):
        assert values(scored) == pytest.approx([0, 0, 0], abs=1e-12)
        figures = JudgeFigures()
        figures.add(scored)
        found = figures.summary()
        assert found["order_flips"] == 1
        assert (found["ties"], found["pairs"]) == (2, 2)


def test_one_order_is_picked_by_neither_place_nor_gold() -> None:
    """Half the comparisons; of 400 rows about half show the right response first, and a row's order changes nothing."""
    rows = [replace(example("right", f"wrong {i}"), id=f"e{i}") for i in range(400)]
    shown = [comparisons(row, "one", seed=0) for row in rows]
    assert all(len(own) == 1 for own in shown)
    assert 160 < sum(own[0].first == 0 for own in shown) < 240  # 4 standard deviations of 10
    turned = [comparisons(replace(row, responses=row.responses[::-1]), "one", seed=0) for row in rows]
    assert all(a[0].first == b[0].second for a, b in zip(shown, turned, strict=True))
    assert shown != [comparisons(row, "one", seed=1) for row in rows]
    scored = compared(lambda first, second: float(first == "right") - float(second == "right"), rows[0], orders="one")
    assert values(scored) == [0.5, -0.5]
    assert None in scored.scores[0].evidence["against"]["1"]
    assert list(order_flips(scored)) == []


# Verdicts


def test_votes_by_hand() -> None:
    """x wins twice, prior 1. With w_x = w and w_y = 1 / w, w = (2 w_y / (w + w_y) + 1 / (1 + w)) / (1 / (1 + w)),
    which is w^3 - w^2 - w - 3 = 0, so w = 2.13040 and log w = 0.75631.
    """
    scored = voted(lambda shown: f"Verdict: {'AB'[sides(shown).index('x')]}", example("x", "y"))
    assert scored.scores[0].evidence == {"verdicts": {"1": "Verdict: A"}}
    assert scored.scores[1].evidence == {"verdicts": {"0": "Verdict: B"}}
    assert values(scored) == pytest.approx([0.75631, -0.75631], abs=1e-5)
    assert list(order_flips(scored)) == [0.0]


def test_a_tie_is_half_a_vote_each() -> None:
    assert values(voted(lambda _: "Tie", example("x", "y", "z"))) == pytest.approx([0, 0, 0], abs=1e-9)


def test_an_unreadable_verdict_counts_for_nobody() -> None:
    """Whoever is shown where: silence about z leaves z without a score and the others where they are without it."""

    def write(shown: str) -> str:
        return "Hm." if "z" in sides(shown) else f"Verdict: {'AB'[sides(shown).index('x')]}"

    scored = voted(write, example("x", "z", "y"))
    alone = voted(write, example("x", "y"))
    assert [values(scored)[0], values(scored)[2]] == pytest.approx(values(alone))
    assert math.isnan(values(scored)[1])
    assert scored.scores[1].reason == NO_VERDICT
    silent = voted(lambda _: "Hm.", example("x", "y"))
    assert all(map(math.isnan, values(silent)))
    assert silent.scores[0].evidence == {"verdicts": {"1": "Hm."}}


@pytest.mark.parametrize("silent", ["A", "B"])
def test_one_readable_order_is_enough(silent: str) -> None:
    """A verdict for x in one order, none in the other, whichever was lost: one vote.

    As above, w^3 - w^2 - 2 = 0, so w = 1.69562 and log w = 0.52805.
    """

    def write(shown: str) -> str:
        place = "AB"[sides(shown).index("x")]
        return "Hm." if place == silent else f"Verdict: {place}"

    assert values(voted(write, example("x", "y"))) == pytest.approx([0.52805, -0.52805], abs=1e-5)


# On a model


def on_model(folder: str, name: str, examples: Sequence[Example]) -> list[Example]:
    with open_backend("hf", folder, BackendOptions(device="cpu")) as backend:
        return JUDGES[name].make(JudgeSetup((backend,), tokens=6))(examples)


@pytest.mark.parametrize("name", ["pairwise", "pairwise-verdict"])
def test_neither_company_nor_order_matters(model_folder: Callable[..., str], name: str) -> None:
    folder = model_folder("llama", **WIDE)
    together = on_model(folder, name, several())
    alone = [on_model(folder, name, [one])[0] for one in several()]
    turned = on_model(folder, name, [replace(one, responses=one.responses[::-1]) for one in several()])
    for one, other, back in zip(together, alone, turned, strict=True):
        assert values(one) == pytest.approx(values(other), abs=1e-4, nan_ok=True)
        assert values(one) == pytest.approx(values(back)[::-1], abs=1e-4, nan_ok=True)
        assert [score.truncated for score in one.scores] == [False] * len(one.scores)
    if name == "pairwise":
        assert len({round(value, 6) for value in values(together[1])}) == 3
        assert all(0 < score.label_mass < 1 for one in together for score in one.scores)


@pytest.mark.parametrize("name", ["pairwise", "pairwise-verdict"])
def test_long_responses_do_not_stop_a_run(model_folder: Callable[..., str], name: str) -> None:
    scored = on_model(model_folder("llama", **WIDE), name, [example("w " * 3000, "v " * 3000), several()[0]])
    assert [score.truncated for one in scored for score in one.scores] == [True, True, False, False]


# Options and wording


def test_the_prompt_shows_both_and_ends_with_the_question() -> None:
    backend = Comparer(lambda *_: 0.0)
    JUDGES["pairwise"].make(JudgeSetup((backend,)))([example("{second}", "five")])
    shown = backend.asked[0].quoted.messages[0].content
    assert sides(shown) == ("{second}", "five")
    assert shown.startswith(f"Request:\n{ASK[0].content}\n")
    assert shown.endswith("Answer A or B.")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"judge_tokens": 9}, "--judge-tokens has no effect with --judge yes-no"),
        ({"judge": "pairwise", "judge_tokens": 9}, "--judge-tokens has no effect with --judge pairwise"),
        ({"judge": "rating", "orders": "one"}, "--orders has no effect with --judge rating"),
        ({"judge": "rating", "in_place": True}, "--in-place has no effect with --judge rating"),
        ({"judge": "pairwise", "label_mass": 0.5}, "--label-mass has no effect with --judge pairwise"),
        ({"judge": "pairwise", "seed": 3}, "--seed has no effect with --orders both"),
        ({"judge": "rating", "seed": 3}, "--seed has no effect with --judge rating"),
    ],
)
def test_options_without_effect_are_refused(values: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        build_checked(JudgeConfig, {"model": "lab", "input": "lab"} | values)
    good = {"judge": "pairwise", "orders": "one", "seed": 3}
    assert build_checked(JudgeConfig, {"model": "lab", "input": "lab"} | good).orders == "one"
