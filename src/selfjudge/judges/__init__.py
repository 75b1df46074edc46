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

from selfjudge.backends import Backend, Scorer
from selfjudge.errors import ConfigError
from selfjudge.judges.committee import Committee, annotators_of, problems
from selfjudge.judges.controls import oracle, random
from selfjudge.judges.reward_model import reward_model
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
    layout: Literal["chat", "reference"] = "chat"
    annotators: int = 0
    """Of the committee; 0: every wording put to every model."""
    votes: str = "soft"
    models: tuple[str, ...] = ()
    """Names of the backends' models, for the committee."""
    scorers: tuple[Scorer, ...] = ()
    """The reward model, for the judge that asks one."""


@dataclass(frozen=True)
class JudgeKind:
    """How a judge is made, whom it asks, and the unit of its scores."""

    make: Callable[[JudgeSetup], Judge]
    unit: str
    asks: Literal["language model", "reward model", "nobody"] = "language model"


def _yes_no(setup: JudgeSetup) -> Judge:
    return YesNo(setup.backends[0], setup.questions, setup.in_place, setup.mass_share, setup.layout)


def _committee(setup: JudgeSetup) -> Judge:
    for problem in problems(setup.questions.wordings, len(setup.backends), setup.annotators, setup.votes):
        raise ConfigError(problem)
    models = list(zip(setup.models, setup.backends, strict=True))
    return Committee(annotators_of(models, setup.questions, setup.annotators, mass_share=setup.mass_share), setup.votes)


JUDGES: dict[str, JudgeKind] = {
    "yes-no": JudgeKind(_yes_no, "log-odds, nats"),
    "committee": JudgeKind(_committee, "log-strength, nats, mean 0 over the responses to a prompt"),
    "reward-model": JudgeKind(lambda setup: reward_model(setup.scorers[0]), "logit", "reward model"),
    "oracle": JudgeKind(lambda _: oracle, "+5 or -5", "nobody"),
    "random": JudgeKind(lambda setup: random(setup.seed), "a random number", "nobody"),
}
NEEDS_MODEL = frozenset(name for name, kind in JUDGES.items() if kind.asks != "nobody")
"""Judges that ask a model."""
