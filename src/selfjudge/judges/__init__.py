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
from selfjudge.judges import committee, pairwise, rating, yes_no
from selfjudge.judges.controls import oracle, random
from selfjudge.judges.reward_model import reward_model
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
    """Share of the responses whose label mass is computed, by the judges that ask Yes or No."""
    layout: Literal["chat", "reference"] = "chat"
    annotators: int = 0
    """Of the committee; 0: every wording put to every model."""
    votes: str = "soft"
    models: tuple[str, ...] = ()
    """Names of the backends' models, for the committee."""
    scorers: tuple[Scorer, ...] = ()
    """The reward model, for the judge that asks one."""
    tokens: int = 256
    """At most so many are written by the judges that write, per answer."""
    orders: pairwise.Orders = "both"
    """In which two responses are compared."""


@dataclass(frozen=True)
class JudgeKind:
    """How a judge is made, whom it asks, and the unit of its scores.

    `rescore` computes them again from their evidence, without a model; `labels` names what its label mass lies on.
    `absolute`: scores are log-odds that a response is good, whatever the other responses are, so that sigmoid(score) is
    a probability by itself; those of the other judges only compare.
    """

    make: Callable[[JudgeSetup], Judge]
    unit: str
    asks: Literal["language model", "reward model", "nobody"] = "language model"
    rescore: Callable[[Example], Example] | None = None
    labels: str = "Yes and No"
    absolute: bool = False


def _yes_no(setup: JudgeSetup) -> Judge:
    return yes_no.YesNo(setup.backends[0], setup.questions, setup.in_place, setup.mass_share, setup.layout)


def _rating(setup: JudgeSetup) -> Judge:
    return rating.Rating(setup.backends[0], setup.tokens)


def _rating_expected(setup: JudgeSetup) -> Judge:
    return rating.ExpectedRating(setup.backends[0])


def _pairwise(setup: JudgeSetup) -> Judge:
    return pairwise.Pairwise(setup.backends[0], setup.orders, setup.seed)


def _pairwise_verdict(setup: JudgeSetup) -> Judge:
    return pairwise.PairwiseVerdict(setup.backends[0], setup.tokens, setup.orders, setup.seed)


def _committee(setup: JudgeSetup) -> Judge:
    for problem in committee.problems(setup.questions.wordings, len(setup.backends), setup.annotators, setup.votes):
        raise ConfigError(problem)
    models = list(zip(setup.models, setup.backends, strict=True))
    annotators = committee.annotators_of(models, setup.questions, setup.annotators, mass_share=setup.mass_share)
    return committee.Committee(annotators, setup.votes)


JUDGES: dict[str, JudgeKind] = {
    "yes-no": JudgeKind(_yes_no, "log-odds, nats", rescore=yes_no.rescore, absolute=True),
    "rating": JudgeKind(_rating, "grade, 1 to 5", rescore=rating.rescore),
    "rating-expected": JudgeKind(
        _rating_expected, "mean grade, 1 to 5", rescore=rating.rescore_expected, labels="the grades 1 to 5"
    ),
    "pairwise": JudgeKind(
        _pairwise, "log-odds against the others, nats", rescore=pairwise.rescore, labels="the labels A and B"
    ),
    "pairwise-verdict": JudgeKind(_pairwise_verdict, "log-strength, nats", rescore=pairwise.rescore_verdicts),
    "committee": JudgeKind(
        _committee, "log-strength, nats, mean 0 over the responses to a prompt", rescore=committee.rescore
    ),
    "reward-model": JudgeKind(lambda setup: reward_model(setup.scorers[0]), "logit", "reward model"),
    "oracle": JudgeKind(lambda _: oracle, "+5 or -5", "nobody"),
    "random": JudgeKind(lambda setup: random(setup.seed), "a random number", "nobody"),
}
NEEDS_MODEL = frozenset(name for name, kind in JUDGES.items() if kind.asks != "nobody")
"""Judges that ask a model."""
