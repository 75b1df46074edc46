"""The reward-model judge: the raw logit of a sequence classifier that was trained on preferences of others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from selfjudge.backends import Conversation, Scorer
from selfjudge.judges.asking import distinct
from selfjudge.records import Example, Score


def reward_model(scorer: Scorer) -> Callable[[Sequence[Example]], list[Example]]:
    """A judge that asks the scorer once for each distinct response."""

    def judge(examples: Sequence[Example]) -> list[Example]:
        asked = [Conversation(example.id, example.messages, text) for example in examples for text in distinct(example)]
        scores = (_score(logit, truncated) for logit, truncated in scorer.score(asked))
        return [_with_scores(example, {text: next(scores) for text in distinct(example)}) for example in examples]

    return judge


def _with_scores(example: Example, scores: dict[str, Score]) -> Example:
    return replace(example, scores=tuple(scores[response.text] for response in example.responses))


def _score(logit: float, truncated: bool) -> Score:
    if math.isfinite(logit):
        return Score(logit, truncated=truncated)
    return Score(math.nan, truncated=truncated, reason=f"the reward model's logit is {logit}")
