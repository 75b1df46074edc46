import re

import pytest

from selfjudge.report.charts import Axes, Point, Series, bins_of, extent, histogram, line_chart, nice_ticks, tick_label

AXES = Axes("Title <1>", ((0, "start"), (1, "1"), (2, "2")), (0, 0.5, 1), "%", width=352, height=138)
"""290 pixels for 3 steps from 52 on, 100 pixels for 0..1 from 110 upward."""


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0.22, 0.61, [0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
        (-9.2, 8.9, [-10, -5, 0, 5, 10]),
        (3, 3, [3, 4]),
        (0, 0, [0, 0.25, 0.5, 0.75, 1]),
    ],
)
def test_ticks_are_round_and_cover_the_values(low, high, expected):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low <= high <= ticks[-1]
    if low != high:
        assert ticks == pytest.approx(expected)


def test_a_point_is_where_the_axes_say():
    chart = line_chart(AXES, [Series("a", (Point(0, 0.0), Point(1, 0.5), Point(2, 1.0)))])
    assert 'd="M100.3 110.0L197.0 60.0L293.7 10.0"' in chart


def test_a_missing_value_is_a_gap_and_said_so():
    chart = line_chart(AXES, [Series("a", (Point(0, 0.5), Point(1, None), Point(2, 0.5)))])
    assert re.search(r'd="M[\d. ]+M[\d. ]+"', chart)
    assert chart.count(">n/a<") == 1
    assert chart.count('class="mark') == 2


def test_what_one_series_lacks_and_another_has_is_no_missing_round():
    chart = line_chart(AXES, [Series("a", (Point(1, None),)), Series("b", (Point(1, 0.5),), 1)])
    assert "n/a" not in chart


def test_intervals_of_several_series_stand_side_by_side():
    series = [Series(name, (Point(1, 0.5, 0.4, 0.6),), style) for style, name in enumerate("ab")]
    assert re.findall(r'whisker s\d" x1="([\d.]+)"', line_chart(AXES, series)) == ["194.5", "199.5"]


def test_titles_and_tips_are_escaped():
    chart = line_chart(AXES, [Series("a", (Point(0, 0.5, tip='"<script>'),))])
    assert "Title &lt;1&gt;" in chart
    assert "&lt;script&gt;" in chart
    assert "<script>" not in chart


def test_every_value_falls_into_one_bin():
    bins = bins_of([[0.0, 0.4, 1.0], [0.6]], 0.0, 1.0, count=2)
    assert [one.counts for one in bins] == [(2, 0), (1, 1)]


def test_bars_stack_to_the_sum_of_the_kinds():
    axes = Axes("Counts", ((0, "0"), (1, "1")), (0, 4), width=162, height=138, x_low=0, x_high=1)
    chart = histogram(axes, bins_of([[0.5], [0.5, 0.6]], 0, 1, count=1), ["right", "wrong"])
    bars = re.findall(r'class="bar (\w+)" x="[\d.]+" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', chart)
    assert bars == [("right", "85.0", "25.0"), ("wrong", "35.0", "50.0")]


def test_extent_counts_intervals_and_leaves_missing_out():
    assert extent([Series("a", (Point(0, 0.5, 0.25, 0.75), Point(1, None)))]) == (0.25, 0.75)
    assert extent([Series("a", (Point(0, None),))]) is None


def test_tick_labels():
    assert [tick_label(value, unit) for value, unit in ((0.475, "%"), (-2.5, ""), (1000, ""))] == [
        "47.5\u202f%",
        "\u22122.5",
        "1000",
    ]
