"""Calibration and bias of a judge by hand, on rows made for it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from selfjudge.judging_figures import BINS, calibration, judging_figures, length_bias
from selfjudge.records import Example, Message, Response, Score


def row(texts: list[str], scores: list[float], gold: tuple[int, ...] = (0,), **more: object) -> Example:
    """A row whose prompt is its responses and scores, so that rows differ."""
    messages = (Message("user", f"{texts} {scores}"),)
    given = tuple(Score(score) for score in scores)
    return Example(
        f"{texts} {scores}", messages, responses=tuple(map(Response, texts)), gold=gold, scores=given, **more
    )  # type: ignore[arg-type]


def compared(*against: dict[str, list[float | None]]) -> Example:
    """One response per argument, with what it was compared with as evidence."""
    responses = tuple(Response(str(index)) for index in range(len(against)))
    scores = tuple(Score(math.nan, evidence={"against": others} if others else {}) for others in against)
    return Example("c", (Message("user", "?"),), responses=responses, gold=(0,), scores=scores)


# Calibration


def test_calibration_by_hand() -> None:
    """Fitted on 2, 2, 2, -2: T = 2 / log 3. The others: log 3 right, -log 3 wrong, 0 tied.

    At T = 1 their confidences are 3/4, 3/4, 1/2 with 1/2, 1/2 right: ECE 2/3 * 1/4 = 1/6; Brier (1/16 + 9/16) / 3.
    At T the odds log 3 become log(3)^2 / 2 = 0.6035, a confidence of 0.6465, so ECE 2/3 * 0.1465.
    """
    log3 = math.log(3)
    differences = np.array([2, 2, 2, -2, log3, -log3, 0, math.nan])
    found = calibration(differences, np.arange(8) < 4)
    assert (found["fitted_pairs"], found["checked_pairs"]) == (4, 3)
    assert found["temperature"] == pytest.approx(2 / log3)
    assert found["before"]["ece"] == pytest.approx(1 / 6)
    assert found["before"]["brier"] == pytest.approx(10 / 16 / 3)
    assert found["before"]["log_loss"] == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4) + math.log(1 / 2)) / 3)
    assert (found["before"]["mean_predicted"], found["before"]["mean_right"]) == (pytest.approx(2 / 3), 0.5)
    confidence = 1 / (1 + math.exp(-(log3**2) / 2))
    assert found["after"]["ece"] == pytest.approx(2 / 3 * (confidence - 1 / 2))


def test_bins_of_pairs_begin_at_one_half() -> None:
    bins = calibration(np.array([1.0, -1.0, 0.0, 50.0]), np.zeros(4, bool))["before"]["bins"]
    assert [each["low"] for each in bins] == pytest.approx([0.5 + each / 20 for each in range(BINS)])
    assert [each["n"] for each in bins] == [1, 0, 0, 0, 2, 0, 0, 0, 0, 1]  # sigmoid(1) = 0.73
    assert sum(each["n"] for each in bins) == 4


@pytest.mark.parametrize(("differences", "reason"), [([1.0, 2.0], "none of the 2 pairs is wrong"), ([], "to 0 pairs")])
def test_without_a_temperature_the_reason_is_given(differences: list[float], reason: str) -> None:
    found = calibration(np.array([*differences, 1.0]), np.arange(len(differences) + 1) < len(differences))
    assert math.isnan(found["temperature"])
    assert reason in found["reason"]
    assert "after" not in found
    assert found["before"]["ece"] == pytest.approx(1 - 1 / (1 + math.exp(-1)))


def test_scores_in_another_unit_have_another_temperature() -> None:
    """Scores times 10 are the same judge: T is ten times as large, and calibrated it is the same."""
    differences = np.random.default_rng(0).normal(1, 2, size=200)
    fitting = np.arange(200) % 2 == 0
    nats, tenths = calibration(differences, fitting), calibration(10 * differences, fitting)
    assert tenths["temperature"] == pytest.approx(10 * nats["temperature"])
    assert tenths["after"]["ece"] == pytest.approx(nats["after"]["ece"])
    assert tenths["before"]["ece"] > nats["before"]["ece"] + 0.05


def test_a_prompt_is_not_on_both_sides_of_the_fit() -> None:
    """Forty rows of one prompt: all of them fit, or none."""
    rows = [Example(str(i), (Message("user", "?"),), None, (Response("a"), Response("b")), (0,)) for i in range(40)]
    judged = [Example(**{**vars(each), "scores": (Score(1.0 + i), Score(3.0))}) for i, each in enumerate(rows)]
    found = judging_figures(judged)["calibration"]
    assert sorted((found["fitted_pairs"], found["checked_pairs"])) == [0, 40]


def test_pointwise_by_hand() -> None:
    """P(Yes) 3/4 and 1/4 for a right and a wrong one, 3/4 for another wrong one, one missing.

    ECE: (2/3) |1/2 - 3/4| + (1/3) |0 - 1/4| = 1/4.
    """
    log3 = math.log(3)
    judged = [row(["a", "b", "c", "d"], [log3, -log3, log3, math.nan])]
    found = judging_figures(judged, absolute=True)["calibration"]["pointwise"]
    assert (found["responses"], found["ece"]) == (3, pytest.approx(1 / 4))
    assert [each["n"] for each in found["bins"]] == [0, 0, 1, 0, 0, 0, 0, 2, 0, 0]
    assert "pointwise" not in judging_figures(judged)["calibration"]


# Bias


def test_length_bias_by_hand() -> None:
    """Right and longer: won, tied. Right and shorter: won, lost, lost. As long: lost.

    The longer one is preferred in 1 + 1/2 + 0 + 1 + 1 = 3.5 of 5, and right in 2 of 5.
    """
    differences = np.array([2.0, 0.0, 1.0, -1.0, -3.0, -1.0])
    found = length_bias(differences, np.array([1, 1, -1, -1, -1, 0], np.int8), np.arange(6, dtype=np.uint64))
    assert {name: (figure["value"], figure["n"]) for name, figure in found.items()} == {
        "longer_preferred": (0.7, 5),
        "longer_right": (0.4, 5),
        "accuracy_right_longer": (0.75, 2),
        "accuracy_right_shorter": (pytest.approx(1 / 3), 3),
        "accuracy_equal_length": (0, 1),
    }
    assert found["longer_right"]["low"] < 0.4 < found["longer_right"]["high"]


def test_lengths_are_characters_of_the_responses() -> None:
    """The right one meets a longer, a shorter and an equal one; a missing score leaves its pair out."""
    judged = [row(["four", "longer", "so", "same", "missing"], [1.0, 2.0, 0.0, 3.0, math.nan])]
    found = judging_figures(judged)["bias"]["length"]
    assert {name: (figure["value"], figure["n"]) for name, figure in found.items()} == {
        "longer_preferred": (1.0, 2),
        "longer_right": (0.5, 2),
        "accuracy_right_longer": (1.0, 1),
        "accuracy_right_shorter": (0.0, 1),
        "accuracy_equal_length": (0.0, 1),
    }


def test_position_bias_by_hand() -> None:
    """Flipped (first preferred twice), kept (once), flipped (never), a tie in one order (1.5 times), missing."""
    orders = [[2.0, -1.0], [2.0, 1.0], [-1.0, 1.0], [1.0, 0.0], [1.0, None]]
    found = judging_figures([compared({"1": each}, {}) for each in orders])["bias"]["position"]
    assert (found["position_flips"]["value"], found["position_flips"]["n"]) == (0.5, 4)
    assert found["first_preferred"]["value"] == pytest.approx((1 + 0.5 + 0 + 0.75) / 4)


def test_a_judge_of_one_order_has_no_position_figures() -> None:
    assert set(judging_figures([row(["a", "b"], [1.0, 0.0])])["bias"]) == {"length"}


# Categories


def test_accuracy_by_category() -> None:
    judged = [
        row(["a", "b"], [1.0, 0.0], category="math"),
        row(["a", "b"], [1.0, 2.0], category="math"),
        row(["a", "b"], [1.0, 3.0], category="math"),
        row(["a", "b"], [0.0, math.nan], category="math"),
        row(["a", "b"], [4.0, 3.0]),
    ]
    found = judging_figures(judged)["by_category"]
    assert {name: (each["value"], each["n"]) for name, each in found.items()} == {
        "math": (pytest.approx(1 / 3), 3),
        "uncategorised": (1, 1),
    }
    assert "by_category" not in judging_figures(judged[:3])


def test_nothing_labelled_gives_nothing() -> None:
    assert judging_figures([row(["a", "b"], [1.0, 0.0], gold=())], absolute=True) == {}
