"""What several judges do alike: ask about each text once, let the model write, find the evidence of a stored score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from selfjudge.backends import Backend, SampleRequest, SampleResult, Sampling
from selfjudge.errors import DataError
from selfjudge.records import Example, Score


def distinct(example: Example) -> dict[str, int]:
    """Texts to judge, each with the index of the first response that has it: identical ones are asked about once."""
    first: dict[str, int] = {}
    for index, response in enumerate(example.responses):
        first.setdefault(response.text, index)
    return first


def greedy(backend: Backend, requests: Sequence[SampleRequest], tokens: int) -> dict[str, SampleResult]:
    """What the model writes, at most `tokens` tokens at temperature 0, by the key of the request."""
    if not requests:
        return {}
    sampling = Sampling(num_responses=1, temperature=0, max_new_tokens=tokens)
    return {result.key: result for batch in backend.generate(requests, sampling) for result in batch}


def missing(score: Score, reason: str) -> Score:
    """The score without a value."""
    return replace(score, value=math.nan, reason=reason)


def evidence(example: Example, judge: str, *keys: str) -> list[dict[str, Any]]:
    """The evidence of every response, which has at least one of the keys; nothing for one that could not be asked.

    Raises DataError where another judge, or none, gave the scores.
    """
    kept: list[dict[str, Any]] = []
    for index in range(len(example.responses)):
        score = example.scores[index] if index < len(example.scores) else Score(math.nan)
        found = score.evidence
        if (found or score.reason is None) and not any(key in found for key in keys):
            shown = f"holds {', '.join(found)}" if found else "is empty"
            raise DataError(
                f"{example.id}, response {index}: the evidence of its score {shown}, but the {judge} judge needs "
                f"`{keys[0]}`; give the --judge that scored these rows, or judge them again"
            )
        kept.append(found)
    return kept
