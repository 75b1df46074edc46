"""The yes-no judge: ask the model whether the response is good, read log p(Yes) - log p(No) where its answer starts.

    log_odds = logsumexp(log p of the Yes ids) - logsumexp(log p of the No ids)

(Garg et al., Implicit Preference Optimization, arXiv 2502.16182.) One forward pass per response, no text generated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from selfjudge.backends import Backend, FollowUp, LabelRequest, LabelResult, Messages
from selfjudge.categories import classify
from selfjudge.judges.asking import distinct, evidence
from selfjudge.questions import REFERENCE_NO, REFERENCE_YES, Questions
from selfjudge.readers import hash_share
from selfjudge.records import Example, Score


class YesNo:
    """Scores examples with one question per category; a missing category is found by the same model first."""

    def __init__(
        self,
        backend: Backend,
        questions: Questions,
        in_place: bool = False,
        mass_share: float = 1.0,
        layout: Literal["chat", "reference"] = "chat",
    ) -> None:
        """`in_place`: ask as the next turn of the conversation instead of quoting request and response.

        `mass_share` of the responses, chosen by a hash, get their label mass computed, the others have NaN.
        `layout` reference reproduces the reference implementation, mistakes included, for comparison.
        """
        self.backend = backend
        self.questions = questions
        self.mass_share = mass_share
        self.layout: Literal["chat", "reference"] = layout
        if layout == "reference":
            self.labels, self.render = (REFERENCE_YES, REFERENCE_NO), questions.as_reference
        else:
            self.labels = (questions.yes, questions.no)
            self.render = questions.in_place if in_place else questions.separate

    def __call__(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with one score per response, in their order."""
        known = classify(self.backend, examples)
        requests = [self.request(example, text) for example in known for text in distinct(example)]
        results = iter(self.backend.label_logprobs(requests))
        return [self._with_scores(example, {text: next(results) for text in distinct(example)}) for example in known]

    def request(self, example: Example, text: str) -> LabelRequest:
        """The question about one response to an example whose category is known."""
        with_mass = hash_share(f"{example.id}\x1f{text}") < self.mass_share
        render = partial(self._messages, example, self.questions.topic(example))
        return LabelRequest(example.id, render, text, self.labels, with_mass, self.layout)

    def _messages(self, example: Example, topic: str, text: str) -> Messages:
        return self.render(example.messages, text, topic)

    def _with_scores(self, example: Example, results: dict[str, LabelResult]) -> Example:
        scores = [score_of(results[response.text]) for response in example.responses]
        return replace(example, scores=tuple(scores))


def follow_up(questions: Questions, example: Example) -> FollowUp:
    """The question in place, for a backend to put behind each response that it samples."""
    return FollowUp(questions.next_turn(questions.topic(example)), (questions.yes, questions.no))


def score_of(result: LabelResult) -> Score:
    """Log-odds of Yes against No, with the label mass; a bound where an API did not list one of them."""
    yes, no = result.logprobs
    kept: dict[str, Any] = {"log_odds": yes - no} if math.isnan(result.mass) else {"yes": yes, "no": no}
    if result.bounded:
        kept["bounded"] = True
    return Score(yes - no, result.mass, result.truncated, result.reason, {} if result.reason else kept)


def rescore(example: Example) -> Example:
    """The log-odds from the kept log-probabilities. Raises DataError where there are none."""
    return replace(example, scores=tuple(map(_again, evidence(example, "yes-no", "yes", "log_odds"), example.scores)))


def _again(kept: dict[str, float], score: Score) -> Score:
    """Without the label mass only the difference of the log-probabilities means anything, and only it was kept."""
    if not kept:
        return score
    value = kept["log_odds"] if "log_odds" in kept else kept["yes"] - kept["no"]
    return replace(score, value=value, reason=None)
