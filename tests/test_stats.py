"""Counts and intervals: hand-solved cases, with scipy as the oracle where it has one."""

import math
import string

import numpy as np
import pytest
from scipy import optimize, special, stats

from selfjudge import stats as own
from selfjudge.errors import DataError, StepError
from selfjudge.stats import (
    Accuracy,
    accuracy,
    brier_score,
    credit,
    difference_interval,
    discordant,
    expected_calibration_error,
    fit_temperature,
    kendall_tau_b,
    log_loss,
    mcnemar,
    mean_interval,
    reliability,
    sigmoid,
)

NAN = math.nan


def test_credit():
    assert credit([0.1, 0.0, -3.0, NAN, math.inf]) == pytest.approx([1, 0.5, 0, NAN, 1], nan_ok=True)


def test_accuracy_counts_ties_half_and_shows_the_strict_figure():
    """3 right, 1 tie, 1 wrong, 1 missing: (3 + 1/2) / 5 = 0.7 of those judged; 3 / 6 strictly."""
    assert accuracy([1.0, 2.0, 0.5, 0.0, -1.0, NAN]) == Accuracy(n=5, accuracy=0.7, strict=0.5, ties=1, missing=1)


def test_accuracy_of_nothing_is_missing():
    nothing = accuracy([NAN, NAN])
    assert (nothing.n, nothing.strict, nothing.ties, nothing.missing) == (0, 0.0, 0, 2)
    assert math.isnan(nothing.accuracy)
    assert math.isnan(accuracy([]).strict)


def test_whole_prompts_are_drawn():
    """Prompt x has three right pairs, y one wrong one. Draws: xx -> 1, xy and yx -> 3/4, yy -> 0, a quarter each.

    The middle 40 % of these are all 3/4. Drawn singly the four pairs give Binomial(4, 3/4) / 4, whose 0.7 quantile is 1
    as P(all right) = 0.316 > 0.3.
    """
    values, groups = [1, 1, 0, 1], ["x", "x", "y", "x"]
    grouped = mean_interval(values, groups, seed=0, confidence=0.4)
    assert (grouped.estimate, grouped.low, grouped.high) == (0.75, 0.75, 0.75)
    assert mean_interval(values, seed=0, confidence=0.4, resamples=20_000).high == 1.0
    assert mean_interval(values, groups, seed=0).low == 0.0


def test_interval_of_a_share_is_binomial():
    """30 of 50: a bootstrap mean is Binomial(50, 0.6) / 50."""
    values = np.repeat([1.0, 0.0], [30, 20])
    found = mean_interval(values, seed=3, resamples=20_000)
    expected = stats.binom.ppf([0.025, 0.975], 50, 0.6) / 50
    assert (found.low, found.high) == pytest.approx(expected, abs=0.011)  # one step of the grid is 0.02


def test_interval_of_a_mean_agrees_with_scipy():
    values = np.random.default_rng(0).gamma(2.0, size=80)
    found = mean_interval(values, seed=1, resamples=5000)
    oracle = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(2), n_resamples=5000)
    assert found.estimate == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(oracle.confidence_interval, abs=0.02)


def test_intervals_are_seeded():
    values = np.arange(10.0)
    assert mean_interval(values, seed=5) == mean_interval(values, seed=5)
    assert mean_interval(values, seed=5) != mean_interval(values, seed=6)


def test_missing_values_are_left_out_of_the_mean():
    with_gap = mean_interval([1.0, NAN, 0.0, 1.0], ["a", "a", "b", "c"], seed=0)
    assert with_gap == mean_interval([1.0, 0.0, 1.0], ["a", "b", "c"], seed=0)


def test_a_group_without_values_is_not_drawn():
    assert mean_interval([1.0, NAN, 0.0], ["a", "b", "c"], seed=0) == mean_interval([1.0, 0.0], ["a", "c"], seed=0)


def test_no_interval_from_one_prompt_or_none():
    one = mean_interval([1.0, 0.0], ["a", "a"], seed=0)
    assert one.estimate == 0.5
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert math.isnan(mean_interval([NAN], seed=0).estimate)


def test_difference_is_paired():
    """The second judge is right wherever the first is, and once more: the difference is 1/20 in 20 and never positive.

    Unpaired, two shares near 1/2 of 20 would differ by up to 0.3 either way.
    """
    first = np.array([1.0] * 10 + [0.0] * 10)
    second = first.copy()
    second[10] = 1.0
    found = difference_interval(first, second, seed=0)
    assert found.estimate == pytest.approx(-0.05)
    assert found.high == 0.0
    assert found.low == pytest.approx(-0.15)  # Binomial(20, 1/20): P(more than 3) = 0.016 < 0.025


def test_difference_draws_whole_prompts():
    """The case of `test_whole_prompts_are_drawn`, as differences 1, 1, 0, 1."""
    found = difference_interval([1, 1, 0, 1], np.zeros(4), ["x", "x", "y", "x"], seed=0, confidence=0.4)
    assert (found.estimate, found.low, found.high) == (0.75, 0.75, 0.75)


def test_difference_leaves_out_pairs_missing_in_either():
    assert difference_interval([1.0, 1.0, NAN, 0.0], [0.0, NAN, 1.0, 0.0], seed=0).estimate == 0.5


def test_discordant_pairs():
    """Right/wrong, right/tie | wrong/right | both right, both wrong, missing on either side."""
    first = [1.0, 2.0, -1.0, 3.0, -1.0, NAN, 1.0]
    second = [-1.0, 0.0, 1.0, 1.0, -2.0, 1.0, NAN]
    assert discordant(first, second) == (2, 1)


def test_mcnemar_by_hand():
    """1 against 5: 2 (1 + 6) / 2^6 = 14/64."""
    assert mcnemar(1, 5) == mcnemar(5, 1) == 14 / 64
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1.0


@pytest.mark.parametrize(("first_only", "second_only"), [(0, 4), (7, 20), (350, 420), (1500, 1200)])
def test_mcnemar_is_the_binomial_test(first_only: int, second_only: int):
    expected = stats.binomtest(first_only, first_only + second_only, 0.5).pvalue
    assert mcnemar(first_only, second_only) == pytest.approx(expected, rel=1e-9)


def test_kendall_by_hand():
    """abcd against bacd: 5 of 6 pairs agree, one does not: 4/6. With a tie in one: 2 agree of 3, 2 / sqrt(2 * 3)."""
    assert kendall_tau_b([4, 3, 2, 1], [3, 4, 2, 1]) == pytest.approx(4 / 6)
    assert kendall_tau_b([1, 1, 0], [2, 1, 0]) == pytest.approx(2 / math.sqrt(6))
    assert all(math.isnan(kendall_tau_b(*pair)) for pair in (([1, 1], [1, 2]), ([1], [1]), ([], [])))


@pytest.mark.parametrize("values", [2, 4, 1000], ids=["many ties", "some ties", "hardly any"])
def test_kendall_agrees_with_scipy(values: int):
    generator = np.random.default_rng(0)
    for _ in range(20):
        first, second = generator.integers(values, size=(2, 9))
        expected = stats.kendalltau(first, second).statistic
        assert kendall_tau_b(first, second) == pytest.approx(expected, nan_ok=True)


def test_temperature_by_hand():
    """Differences d three times and -d once: flat where sigmoid(d / T) = 3/4, so T = d / log 3."""
    assert fit_temperature([2.0, 2.0, 2.0, 0.0], [0.0, 0.0, 0.0, 2.0]) == pytest.approx(2 / math.log(3))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_temperature_agrees_with_scipy(scale: float):
    """Pairs drawn from a judge of temperature 2.5: scipy's minimum, and near the truth."""
    generator = np.random.default_rng(0)
    differences = generator.normal(0, 4, size=4000)
    differences = np.where(generator.random(4000) < special.expit(differences / 2.5), differences, -differences)
    found = fit_temperature(differences * scale, np.zeros(4000)) / scale
    oracle = optimize.minimize_scalar(
        lambda inverse: np.logaddexp(0, -inverse * differences).mean(), bounds=(0, 10), options={"xatol": 1e-10}
    )
    assert found == pytest.approx(1 / oracle.x, rel=1e-5)
    assert found == pytest.approx(2.5, rel=0.1)


def test_temperature_leaves_out_missing_pairs():
    assert fit_temperature([2.0, 2.0, 2.0, 0.0, NAN], [0.0, 0.0, 0.0, 2.0, 1.0]) == pytest.approx(2 / math.log(3))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([1.0, 2.0, 0.0], "none of the 3 pairs is wrong, so the fit runs to its bound T = 0"),
        ([1.0, -2.0], "score 0.5 nats lower .* T = infinity"),
        ([0.0, 0.0], "2 pairs without a score difference"),
        ([NAN], "0 pairs"),
    ],
)
def test_temperature_at_its_bounds_is_an_error(chosen: list[float], message: str):
    with pytest.raises(StepError, match=message):
        fit_temperature(chosen, np.zeros(len(chosen)))


@pytest.mark.parametrize("at_once", [1, 25, 1 << 19], ids=["one resample", "three resamples", "all"])
def test_draws_do_not_depend_on_how_many_are_in_memory(at_once: int, monkeypatch: pytest.MonkeyPatch):
    """The bounds are those of one draw after the other, to the last bit."""
    monkeypatch.setattr(own, "DRAWN_AT_ONCE", at_once)
    values, groups = np.random.default_rng(0).normal(size=20), np.arange(20) % 8
    sums, counts = np.bincount(groups, values), np.bincount(groups)
    generator = np.random.default_rng(4)
    means = []
    for _ in range(100):
        drawn = generator.integers(8, size=8)
        means.append(sums[drawn].sum() / counts[drawn].sum())
    found = mean_interval(values, groups, seed=4, resamples=100)
    assert [found.low, found.high] == list(np.quantile(means, [0.025, 0.975]))


def test_reliability_by_hand():
    """Bins of a half: .1 and .3 (mean .2) of which one came true (.5); .5, .9 and 1 (mean .8) with 1 + 1 + 0 of 3.

    ECE = 2/5 |.5 - .2| + 3/5 |2/3 - .8| = .12 + .08 = .2
    """
    predicted, outcomes = [0.1, 0.3, 0.5, 0.9, 1.0, NAN, 0.7], [0, 1, 1, 1, 0, 1, NAN]
    low, high = reliability(predicted, outcomes, bins=2)
    assert tuple(low) == pytest.approx((0, 0.5, 2, 0.2, 0.5))
    assert tuple(high) == pytest.approx((0.5, 1, 3, 0.8, 2 / 3))
    assert expected_calibration_error(predicted, outcomes, bins=2) == pytest.approx(0.2)


def test_empty_bins_are_kept():
    bins = reliability([0.25, 0.3], [1, 0.5], bins=10)
    assert [each.n for each in bins] == [0, 0, 1, 1, 0, 0, 0, 0, 0, 0]
    assert [each.low for each in bins] == [each / 10 for each in range(10)]
    assert bins[3].right == 0.5
    assert math.isnan(bins[0].predicted)
    assert math.isnan(bins[0].right)
    assert math.isnan(expected_calibration_error([], []))


def test_calibrated_predictions_have_little_error():
    """An outcome drawn with its own probability; the error that is left is of order sqrt(bins / n) = 0.01."""
    generator = np.random.default_rng(0)
    predicted = generator.random(100_000)
    outcomes = generator.random(100_000) < predicted
    assert expected_calibration_error(predicted, outcomes) < 0.01
    assert expected_calibration_error(predicted**2, outcomes) == pytest.approx(1 / 2 - 1 / 3, abs=0.01)


def test_brier_and_log_loss_by_hand():
    """(.2^2 + .4^2 + .5^2) / 3 = .15; -log .8 - log .6 and log 2 for half a success at even odds."""
    predicted, outcomes = np.array([0.8, 0.4, 0.0]), [1, 0, 0.5]
    assert brier_score(predicted, outcomes) == pytest.approx(0.15)
    odds = [math.log(4), math.log(2 / 3), 0.0, NAN]
    assert log_loss(odds, [*outcomes, 1]) == pytest.approx(-(math.log(0.8) + math.log(0.6) + math.log(0.5)) / 3)
    assert math.isnan(brier_score([], []))
    assert math.isnan(log_loss([], []))


def test_certain_mistakes_have_a_finite_loss():
    """sigmoid(800) is 1 in floating point, but the loss of being wrong at 800 nats is 800."""
    assert sigmoid([800.0, -800.0, 0.0]) == pytest.approx([1, 0, 0.5])
    assert log_loss([800.0], [0]) == 800.0


def test_the_loss_is_what_the_temperature_minimises():
    differences = np.random.default_rng(1).normal(1, 3, size=500)
    best = fit_temperature(differences, np.zeros(500))
    losses = [log_loss(differences / (best * factor), np.ones(500)) for factor in (0.99, 1, 1.01)]
    assert losses[1] < min(losses[0], losses[2])


def test_a_number_that_is_no_probability_is_refused():
    with pytest.raises(DataError, match=r"1\.5 is no probability"):
        reliability([0.5, 1.5], [1, 0])


def test_lengths_must_agree():
    with pytest.raises(DataError, match="one length"):
        difference_interval([1.0], [1.0, 0.0], seed=0)
    with pytest.raises(DataError, match="26 values but groups of shape"):
        mean_interval(np.zeros(26), list(string.ascii_lowercase[1:]), seed=0)
