"""Judges: each gives every response of an example a log-odds.

    judge = JUDGES["yes-no"](JudgeSetup(backend=backend))
    scored = judge(examples)

A judge is a function from examples to the same examples with `scores`; a response that cannot be judged gets NaN and
the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from selfjudge.backends import Backend
from selfjudge.judges.controls import oracle, random
from selfjudge.judges.yes_no import YesNo
from selfjudge.questions import Questions, load_questions
from selfjudge.records import Example

Judge = Callable[[Sequence[Example]], list[Example]]


@dataclass(frozen=True)
class JudgeSetup:
    """What judges are made from; `backend` may be None for judges that ask no model."""

    backend: Backend | None = None
    questions: Questions = field(default_factory=load_questions)
    in_place: bool = False
    seed: int = 0
    mass_share: float = 1.0
    """Share of the responses whose label mass is computed."""


def _yes_no(setup: JudgeSetup) -> Judge:
    if setup.backend is None:
        raise ValueError("the yes-no judge needs a backend")
    return YesNo(setup.backend, setup.questions, setup.in_place, setup.mass_share)


JUDGES: dict[str, Callable[[JudgeSetup], Judge]] = {
    "yes-no": _yes_no,
    "oracle": lambda _: oracle,
    "random": lambda setup: random(setup.seed),
}
NEEDS_MODEL = frozenset({"yes-no"})
"""Judges that ask a model."""
