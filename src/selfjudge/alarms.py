"""Signs, none of which needs a label, that a run goes wrong: pure comparisons of a round with the first one.

    >>> first, later = RoundFigures(margin=8.0), RoundFigures(margin=6.0)
    >>> [alarm.name for alarm in alarms([first, later])]
    ['margin']

A judge that teaches itself is over-optimised after some rounds: the best responses are more and more often its rare
errors. The mean P(Yes) keeps rising meanwhile and is no sign of anything; it is not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

MARGIN_FALL = 0.1
"""Share of the first round's mean margin by which a later one may fall."""
LENGTH_CHANGE = 0.5
"""Share of the first round's mean length by which a later one may rise or fall."""
MASS_SHARE = 0.5
"""Least label mass as a share of the first round's."""
LEAST_MASS = 0.1
"""Least label mass of any round."""
DIVERSITY_SHARE = 0.5
"""Least share of distinct responses, as a share of the first round's."""
CHOSEN_FALL = 10.0
"""Nats per response by which training may lower the log-probability of the preferred responses."""


@dataclass(frozen=True)
class RoundFigures:
    """Means over one round; NaN where not known, which never is an alarm."""

    margin: float = math.nan
    """s(best) - s(worst) of the pairs, in the judge's unit."""
    length: float = math.nan
    """Tokens per sampled response."""
    mass: float = math.nan
    """Probability on the judge's labels."""
    diversity: float = math.nan
    """Share of distinct responses among the samples."""
    chosen: float = math.nan
    """Change of the preferred responses' log-probability in training against the reference, nats per response."""


class Alarm(NamedTuple):
    """`name` is one in ALARMS; `words` say what happened, in figures."""

    name: str
    words: str


Check = Callable[[RoundFigures, RoundFigures], str | None]
"""From the first round's and this round's figures to what is wrong, if anything."""


def margin(first: RoundFigures, now: RoundFigures) -> str | None:
    """A mean margin more than MARGIN_FALL below the first; nothing where the first is not above 0."""
    if first.margin > 0 and now.margin < (1 - MARGIN_FALL) * first.margin:
        return f"the mean margin fell by more than {MARGIN_FALL:.0%} from round 1, {_course(first.margin, now.margin)}"
    return None


def length(first: RoundFigures, now: RoundFigures) -> str | None:
    """Responses that got longer or shorter by more than LENGTH_CHANGE."""
    if abs(now.length - first.length) <= LENGTH_CHANGE * first.length or math.isnan(now.length - first.length):
        return None
    way = "rose" if now.length > first.length else "fell"
    course = _course(first.length, now.length)
    return f"the mean length of the samples {way} by more than {LENGTH_CHANGE:.0%} from round 1, {course} tokens"


def mass(first: RoundFigures, now: RoundFigures) -> str | None:
    """A judge that no longer answers the question."""
    if now.mass < LEAST_MASS:
        return f"only {now.mass:.2%} of the probability is on the judge's labels (less than {LEAST_MASS:.0%})"
    if now.mass < MASS_SHARE * first.mass:
        return f"the label mass fell below {MASS_SHARE:.0%} of that of round 1, {_course(first.mass, now.mass)}"
    return None


def diversity(first: RoundFigures, now: RoundFigures) -> str | None:
    """Samples that become all the same."""
    if now.diversity < DIVERSITY_SHARE * first.diversity:
        course = _course(first.diversity, now.diversity)
        return f"the share of distinct samples fell below {DIVERSITY_SHARE:.0%} of that of round 1, {course}"
    return None


def chosen(_: RoundFigures, now: RoundFigures) -> str | None:
    """Preferred responses that training made much less likely, along with the others."""
    if now.chosen < -CHOSEN_FALL:
        fall = f"by {-now.chosen:.3g} nats per response (more than {CHOSEN_FALL:g})"
        return f"training lowered the log-probability of the preferred responses {fall}"
    return None


ALARMS: dict[str, Check] = {
    "margin": margin,
    "length": length,
    "mass": mass,
    "diversity": diversity,
    "chosen": chosen,
}
ALL, NONE = "all", "none"


def alarms(history: Sequence[RoundFigures], names: Collection[str] = tuple(ALARMS)) -> list[Alarm]:
    """What is wrong with the last round of `history`, which begins with round 1; `names` are those looked for."""
    found = [(name, check(history[0], history[-1])) for name, check in ALARMS.items() if name in names]
    return [Alarm(name, words) for name, words in found if words is not None]


def alarm_names(text: str) -> list[str]:
    """`margin,mass`, `all` or `none` -> names in ALARMS; others are passed on, for the check of the options."""
    given = [word.strip() for word in text.split(",")]
    return {ALL: [*ALARMS], NONE: []}.get(text.strip(), given)


def _course(before: float, after: float) -> str:
    return f"{before:.3g} -> {after:.3g}"
