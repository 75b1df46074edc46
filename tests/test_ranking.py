"""Strengths from votes: hand-solved matrices, the defining equation, and the cases without a solution."""

import numpy as np
import pytest

from selfjudge.errors import DataError, StepError
from selfjudge.ranking import votes_from_scores, zermelo

FOUR = np.array([[0, 7, 8, 6], [2, 0, 5, 7], [1, 4, 0, 5], [3, 2, 4, 0]])


def margin(log_strengths: np.ndarray) -> float:
    return log_strengths.max() - log_strengths.min()


def test_two_items_stand_as_their_votes():
    """w_1 / w_2 = 7 / 2 = 3.5."""
    assert np.exp(margin(zermelo([[0, 7], [2, 0]], prior=0.0))) == pytest.approx(3.5, abs=1e-7)


def test_four_items_without_prior():
    log_strengths = zermelo(FOUR, prior=0.0)
    assert np.exp(log_strengths) == pytest.approx([2.59609, 1.04937, 0.64513, 0.56899], abs=5e-6)
    assert margin(log_strengths) == pytest.approx(1.51790, abs=5e-6)


def test_four_items_with_prior():
    assert margin(zermelo(FOUR, prior=1.0)) == pytest.approx(1.41005, abs=5e-6)


def test_strengths_explain_the_wins():
    """At the likelihood's maximum the expected wins sum_j n_ij w_i / (w_i + w_j) are the observed 21, 14, 10, 9."""
    strengths = np.exp(zermelo(FOUR, prior=0.0))
    played = FOUR + FOUR.T
    expected = played * strengths[:, None] / (strengths[:, None] + strengths[None, :])
    assert expected.sum(axis=1) == pytest.approx([21, 14, 10, 9], abs=1e-6)


@pytest.mark.parametrize(("num_votes", "expected"), [(1, 1.06), (5, 2.20), (9, 2.67), (21, 3.38)])
def test_unanimous_pair_is_finite_with_prior(num_votes: int, expected: float):
    """By symmetry the strengths are w and 1/w, so z = 2 log w; the likelihood is flat where h/(1+w^2) = (w-1)/(1+w)."""
    z = margin(zermelo([[0, num_votes], [0, 0]], prior=1.0))
    assert z == pytest.approx(expected, abs=0.005)
    w = np.exp(z / 2)
    assert num_votes / (1 + w**2) == pytest.approx((w - 1) / (1 + w), rel=1e-6)


def test_mean_is_zero_and_order_of_items_does_not_matter():
    order = [2, 0, 3, 1]
    log_strengths = zermelo(FOUR, prior=1.0)
    assert log_strengths.mean() == pytest.approx(0, abs=1e-12)
    assert zermelo(FOUR[np.ix_(order, order)], prior=1.0) == pytest.approx(log_strengths[order], abs=1e-6)


def test_diagonal_is_not_read():
    assert np.array_equal(zermelo(FOUR + 5 * np.eye(4), prior=1.0), zermelo(FOUR, prior=1.0))


def test_one_soft_judge_gives_its_own_scores_back():
    """H_ij = sigmoid((s_i - s_j) / T) is the model itself: log w_i = s_i / T up to the mean."""
    scores = np.array([3.0, -1.0, 0.5, -6.5])  # mean -1; divided by T = 2
    votes = votes_from_scores([scores], [2.0])
    assert zermelo(votes, prior=0.0) == pytest.approx([2.0, 0.0, 0.75, -2.75], abs=1e-6)


def test_soft_votes_of_two_annotators():
    """Differences 2 log 3 at T = 2 and 0 at T = 1: sigmoid(log 3) + sigmoid(0) = 3/4 + 1/2, the other way 1/4 + 1/2."""
    votes = votes_from_scores([[2 * np.log(3), 0.0], [5.0, 5.0]], [2.0, 1.0])
    assert votes == pytest.approx(np.array([[0, 1.25], [0.75, 0]]))


def test_soft_votes_keep_their_tail():
    """sigmoid(-50) = e^-50 up to 1e-22, not 0."""
    assert votes_from_scores([[50.0, 0.0]], [1.0])[1, 0] == pytest.approx(np.exp(-50.0), rel=1e-9)


@pytest.mark.parametrize(
    "votes",
    [
        [[0, 9], [0, 0]],  # unanimous
        [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]],  # two islands
        [[0, 1, 1], [1, 0, 1], [0, 0, 0]],  # one item always loses
    ],
)
def test_no_solution_without_prior_is_an_error(votes: list[list[int]]):
    with pytest.raises(StepError, match=r"never beats .* prior above 0"):
        zermelo(votes, prior=0.0)
    assert np.all(np.isfinite(zermelo(votes, prior=1.0)))


def test_a_circle_of_wins_has_a_solution():
    """0 beats 1 beats 2 beats 0: nobody is stronger."""
    assert zermelo([[0, 1, 0], [0, 0, 1], [1, 0, 0]], prior=0.0) == pytest.approx([0, 0, 0], abs=1e-7)


def test_a_long_circle_is_seen_as_connected():
    """Nine items in a ring: the last is reached by eight wins in a row only."""
    ring = np.roll(np.eye(9), 1, axis=1)
    assert zermelo(ring, prior=0.0) == pytest.approx(np.zeros(9), abs=1e-6)


def test_no_convergence_is_an_error():
    with pytest.raises(StepError, match="did not converge in 3 sweeps"):
        zermelo(FOUR, prior=0.0, max_sweeps=3)


@pytest.mark.parametrize(
    ("votes", "prior", "message"),
    [
        ([[0, 1, 2], [1, 0, 2]], 1.0, "square"),
        ([[0]], 1.0, "at least 2"),
        ([[0, -1], [1, 0]], 1.0, "at least 0"),
        ([[0, np.nan], [1, 0]], 1.0, "finite"),
        ([[0, 1], [1, 0]], -1.0, "prior"),
    ],
)
def test_impossible_votes(votes: list[list[float]], prior: float, message: str):
    with pytest.raises(DataError, match=message):
        zermelo(votes, prior=prior)


@pytest.mark.parametrize(
    ("scores", "temperatures", "message"),
    [
        ([[1.0, np.nan]], [1.0], "annotator 0 has score nan for response 1"),
        ([[1.0, 2.0]], [0.0], "above 0"),
        ([[1.0, 2.0]], [1.0, 1.0], "shapes"),
        ([1.0, 2.0], [1.0, 1.0], "shapes"),
    ],
)
def test_impossible_scores(scores: list[list[float]], temperatures: list[float], message: str):
    with pytest.raises(DataError, match=message):
        votes_from_scores(scores, temperatures)
