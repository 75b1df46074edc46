"""Judges: each gives every response of an example a score, higher for a better one.

    judge = JUDGES["yes-no"].make(JudgeSetup(backends=(backend,)))
    scored = judge(examples)

A judge is a function from examples to the same examples with `scores`; a response that cannot be judged gets NaN and
the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from selfjudge.backends import Backend
from selfjudge.judges.controls import oracle, random
from selfjudge.judges.yes_no import YesNo
from selfjudge.questions import Questions, load_questions
from selfjudge.records import Example

Judge = Callable[[Sequence[Example]], list[Example]]


@dataclass(frozen=True)
class JudgeSetup:
    """What judges are made from."""

    backends: tuple[Backend, ...] = ()
    """One per judging model; the committee asks all of them, the others the first."""
    questions: Questions = field(default_factory=load_questions)
    in_place: bool = False
    seed: int = 0
    mass_share: float = 1.0
    """Share of the responses whose label mass is computed."""


@dataclass(frozen=True)
class JudgeKind:
    """How a judge is made, whom it asks, and the unit of its scores.

    `absolute`: scores are log-odds that a response is good, whatever the other responses are, so that sigmoid(score) is
    a probability by itself; those of the other judges only compare.
    """

    make: Callable[[JudgeSetup], Judge]
    unit: str
    asks: Literal["language model", "nobody"] = "language model"
    absolute: bool = False


def _yes_no(setup: JudgeSetup) -> Judge:
    return YesNo(setup.backends[0], setup.questions, setup.in_place, setup.mass_share)


JUDGES: dict[str, JudgeKind] = {
    "yes-no": JudgeKind(_yes_no, "log-odds, nats", absolute=True),
    "oracle": JudgeKind(lambda _: oracle, "+5 or -5", "nobody"),
    "random": JudgeKind(lambda setup: random(setup.seed), "a random number", "nobody"),
}
NEEDS_MODEL = frozenset(name for name, kind in JUDGES.items() if kind.asks != "nobody")
"""Judges that ask a model."""
