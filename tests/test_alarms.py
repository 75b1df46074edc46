"""Alarms by hand: each fires just beyond its border, not on it, and never where a figure is missing."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path

import pytest

from selfjudge import alarms as module
from selfjudge.alarms import ALARMS, Alarm, RoundFigures, alarm_names, alarms
from selfjudge.loop import WATCHED
from selfjudge.report.observations import Change

FIRST = RoundFigures(margin=8.0, length=100.0, mass=0.9, diversity=0.5, chosen=0.25)


def names(**changes: float) -> list[str]:
    return [alarm.name for alarm in alarms([FIRST, replace(FIRST, **changes)])]


@pytest.mark.parametrize(
    ("field", "quiet", "loud"),
    [
        ("margin", 7.21, 7.19),  # 10 % below 8 is 7.2
        ("margin", 80.0, -1.0),
        ("length", 150.0, 150.5),  # 50 % more
        ("length", 50.0, 49.5),
        ("mass", 0.46, 0.44),  # half of 0.9
        ("diversity", 0.25, 0.24),
        ("chosen", -10.0, -10.5),
    ],
)
def test_each_alarm_at_its_border(field: str, quiet: float, loud: float) -> None:
    assert names(**{field: quiet}) == []
    assert names(**{field: loud}) == [field]


def test_nothing_is_wrong_with_the_first_round_but_what_needs_no_comparison() -> None:
    """A mass of 0.09 is less than 0.1 in any round; so is a fall of the preferred responses."""
    assert alarms([FIRST]) == []
    assert [alarm.name for alarm in alarms([replace(FIRST, mass=0.09, chosen=-11.0)])] == ["mass", "chosen"]


def test_missing_figures_are_no_alarm() -> None:
    unknown = RoundFigures()
    assert alarms([unknown, FIRST]) == alarms([FIRST, unknown]) == alarms([unknown, unknown]) == []
    assert all(math.isnan(getattr(unknown, field.name)) for field in fields(unknown))


def test_a_first_margin_that_is_not_positive_is_no_measure() -> None:
    first = replace(FIRST, margin=-1.0)
    assert alarms([first, replace(FIRST, margin=-5.0)]) == []


def test_it_is_the_last_round_against_the_first() -> None:
    """Falls of 6 % each add up: 8, 7.5, 7.05 is a fall of 12 % from round 1."""
    history = [replace(FIRST, margin=margin) for margin in (8.0, 7.5, 7.05)]
    assert alarms(history[:2]) == []
    assert alarms(history) == [Alarm("margin", "the mean margin fell by more than 10% from round 1, 8 -> 7.05")]
    assert alarms([*history, FIRST]) == []  # back again


def test_only_what_is_asked_for() -> None:
    bad = [FIRST, RoundFigures(margin=1.0, length=1.0, mass=0.01, diversity=0.01, chosen=-99.0)]
    assert [alarm.name for alarm in alarms(bad)] == [*ALARMS]
    assert [alarm.name for alarm in alarms(bad, ("length", "mass"))] == ["length", "mass"]


def test_names() -> None:
    assert alarm_names("all") == [*ALARMS]
    assert alarm_names("none") == []
    assert alarm_names("margin, mass") == ["margin", "mass"]
    assert alarm_names("lenght") == ["lenght"]


def test_every_alarm_has_a_figure_that_the_loop_reads() -> None:
    assert {field.name for field in fields(RoundFigures)} == set(ALARMS) == set(WATCHED)


def test_the_report_and_the_loop_have_one_border(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (Change(2, 8.0, 7.21).is_alarm, Change(2, 8.0, 7.19).is_alarm) == (False, True)
    monkeypatch.setattr(module, "MARGIN_FALL", 0.5)
    assert (Change(2, 8.0, 7.19).is_alarm, names(margin=7.19)) == (False, [])


def test_p_yes_is_never_looked_at() -> None:
    """It rises while truth falls."""
    assert "p_yes" not in Path(module.__file__).read_text(encoding="utf-8")
    assert not any("p_yes" in name for _, name in WATCHED.values())
