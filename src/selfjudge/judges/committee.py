"""The committee: several annotators vote on every pair of responses, their votes become one strength per response.

    H_ij = sum_k sigmoid((s_i^k - s_j^k) / T_k)     soft votes: probabilities
    H_ij = sum_k [s_i^k > s_j^k] + [tie] / 2        hard votes

    >>> committee_scores([[0.0, 0.0, 0.0]]).tolist()
    [0.0, 0.0, 0.0]

An annotator is one wording of the yes-no question put to one model. The strengths are those of Zermelo with a prior
(Le et al., iREPO, arXiv 2405.15230; `selfjudge.ranking`): log-strengths in nats with mean 0 over the responses to a
prompt, so only differences within a prompt mean anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from selfjudge.backends import Backend
from selfjudge.categories import classify
from selfjudge.errors import ConfigError
from selfjudge.judges.asking import distinct, evidence
from selfjudge.judges.yes_no import YesNo, score_of
from selfjudge.questions import Questions
from selfjudge.ranking import hard_votes, votes_from_scores, zermelo
from selfjudge.records import Example, Score

VOTES: dict[str, Callable[[ArrayLike, ArrayLike], NDArray[np.float64]]] = {
    "soft": votes_from_scores,
    "hard": lambda scores, _: hard_votes(scores),
}


def committee_scores(
    scores: ArrayLike, votes: str = "soft", temperatures: ArrayLike | None = None, prior: float = 1.0
) -> NDArray[np.float64]:
    """Log-strengths (K,) in nats, mean 0, from the log-odds (h, K) that h annotators gave K distinct responses.

    `votes` is a name in VOTES, `temperatures` (h,) are 1 unless given. A response without a finite score from every
    annotator is left out of the vote and NaN; one that is left alone has strength 0.
    """
    log_odds = np.asarray(scores, float)
    scales = np.ones(len(log_odds)) if temperatures is None else temperatures
    usable = np.isfinite(log_odds).all(axis=0)
    strengths = np.where(usable, 0.0, np.nan)
    if usable.sum() > 1:
        strengths[usable] = zermelo(VOTES[votes](log_odds[:, usable], scales), prior)
    return strengths


class Annotator(NamedTuple):
    """One voice: a question wording put to a model; `name` says which."""

    name: str
    judge: YesNo


class Committee:
    """Scores examples with the votes of several annotators; each response's evidence holds their log-odds."""

    def __init__(self, annotators: Sequence[Annotator], votes: str = "soft") -> None:
        """`votes`: soft or hard. Raises ConfigError for a single annotator with hard votes."""
        for problem in _too_few(len(annotators), votes):
            raise ConfigError(problem)
        self.annotators = annotators
        self.votes = votes

    def __call__(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with one score per response, in their order; `tags` name the annotators."""
        known = classify(self.annotators[0].judge.backend, examples)
        given = self._ask(known)
        return [self._with_scores(example, given[place]) for place, example in enumerate(known)]

    def _ask(self, examples: Sequence[Example]) -> list[dict[str, list[Score]]]:
        """Per example and distinct text, one score of each annotator; all questions to a model in one call.

        Those about the same response stand together, so that request and response are computed once for all of them.
        """
        absent = Score(math.nan)
        given = [{text: [absent] * len(self.annotators) for text in distinct(e)} for e in examples]
        for members in self._by_backend():
            asked = [(place, text, k) for place, texts in enumerate(given) for text in texts for k in members]
            requests = [self.annotators[k].judge.request(examples[place], text) for place, text, k in asked]
            results = self.annotators[members[0]].judge.backend.label_logprobs(requests)
            for (place, text, k), result in zip(asked, results, strict=True):
                given[place][text][k] = score_of(result)
        return given

    def _by_backend(self) -> list[list[int]]:
        """Numbers of the annotators, those that ask the same model together."""
        members: dict[int, list[int]] = {}
        for number, annotator in enumerate(self.annotators):
            members.setdefault(id(annotator.judge.backend), []).append(number)
        return list(members.values())

    def _with_scores(self, example: Example, given: dict[str, list[Score]]) -> Example:
        matrix = [[scores[k].value for scores in given.values()] for k in range(len(self.annotators))]
        strengths = committee_scores(matrix, self.votes).tolist()
        by_text = {
            text: self._score(strength, scores)
            for (text, scores), strength in zip(given.items(), strengths, strict=True)
        }
        names = {"annotators": [annotator.name for annotator in self.annotators]}
        voted = tuple(by_text[response.text] for response in example.responses)
        return replace(example, scores=voted, tags=example.tags | names)

    def _score(self, strength: float, given: Sequence[Score]) -> Score:
        values = [score.value if math.isfinite(score.value) else None for score in given]
        silent = [a.name for a, value in zip(self.annotators, values, strict=True) if value is None]
        return Score(
            strength,
            fmean(score.label_mass for score in given),
            any(score.truncated for score in given),
            f"no finite log-odds from {', '.join(silent)}" if silent else None,
            {"scores": values, "votes": self.votes},
        )


def rescore(example: Example) -> Example:
    """The strengths from the annotators' log-odds that were kept. Raises DataError where there are none."""
    kept = evidence(example, "committee", "scores")
    given = {response.text: own["scores"] for response, own in zip(example.responses, kept, strict=True)}
    matrix = np.array([[math.nan if value is None else value for value in values] for values in given.values()]).T
    by_text = dict(zip(given, committee_scores(matrix, kept[0]["votes"]).tolist(), strict=True))
    scores = zip(example.responses, example.scores, strict=True)
    return replace(example, scores=tuple(replace(score, value=by_text[response.text]) for response, score in scores))


def annotators_of(
    models: Sequence[tuple[str, Backend]], questions: Questions, count: int = 0, **options: Any
) -> list[Annotator]:
    """The first `count` (0: all) of: the first wording put to each (name, backend), the second wording, and so on."""
    every = (
        Annotator(f"wording {number + 1} of {name}", YesNo(backend, questions.using(number), **options))
        for number in range(questions.wordings)
        for name, backend in models
    )
    return list(islice(every, count or None))


def problems(wordings: int, models: int, annotators: int, votes: str) -> Iterator[str]:
    """What is wrong with the options of a committee, one line each."""
    if annotators > wordings * models:
        yield (
            f"--annotators {annotators}: there are {wordings * models} ({wordings} question wordings x {models} "
            "models); use fewer, or add wordings to --questions or models to --judge-model"
        )
        return
    yield from _too_few(annotators or wordings * models, votes)


def _too_few(annotators: int, votes: str) -> Iterator[str]:
    if votes == "hard" and annotators == 1:
        yield (
            "--votes hard with a single annotator gives best against worst the same target on every prompt, however "
            "clear the case is; use --votes soft, or more wordings or judging models"
        )
