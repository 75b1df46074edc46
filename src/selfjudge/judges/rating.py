"""The rating judges: points from 1 to 5, written as text or read from the distribution of the grade's token.

    >>> parse_grade("It is right but wordy.\\nScore: 4")
    4.0

`rating` lets the model write (greedily) and reads the grade in its completion; `rating-expected` takes the mean grade
over the probabilities of the five digits, from one forward pass and without text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

from selfjudge.backends import Backend, LabelRequest, LabelResult, Messages, Quoted, SampleRequest, SampleResult
from selfjudge.judges.asking import distinct, evidence, greedy, missing
from selfjudge.questions import QUESTIONS, fill, flatten, read_table
from selfjudge.records import Example, Message, Score

GRADES = (1, 2, 3, 4, 5)

_NUMBER = r"(?P<grade>-?\d+(?:[.,]\d+)?)(?!\w|%|[.,]\d|[ \t]*(?:-|\u2013|to)[ \t]*\d)"
_OUT_OF = r"(?:\s*/\s*|\s+out\s+of\s+)(?P<most>\d+(?:\.\d+)?|five)(?!\w|%|\.\d|\s*/)"
_BETWEEN = r"(?:[ \t*_`:=<>\[({\"'|$]|\\boxed|\s-\s|\bis\b|\bof\b|\bwould be\b)+"
_MENTIONS = tuple(
    re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    for pattern in (
        rf"\b(?:score|grade|rating|total)\b(?:\s*\([^()\n]*\)|\s+out\s+of\s+(?:5|five)\b)?{_BETWEEN}{_NUMBER}(?:{_OUT_OF})?",
        rf"\[\[\s*{_NUMBER}(?:{_OUT_OF})?\s*\]\]",
        rf"(?<![\w.,/-]){_NUMBER}(?:\s*/\s*|\s+out\s+of\s+)(?P<most>5|five)(?!\w|%|\.\d|\s*/)",
        rf"^[ \t*_`>#]*{_NUMBER}(?:{_OUT_OF})?[ \t\r*_`.]*$",
    )
)
"""The ways to name a grade, the most explicit one first: after a word for it, in double brackets, out of five, alone in
a line."""


def parse_grade(completion: str) -> float | None:
    """The grade from 1 to 5 that a completion names, None where it names none. Reads nothing but the completion.

    Of several mentions the most explicit kind counts (`_MENTIONS`) and of one kind the last. A grade outside 1 to 5
    (7/5) and one on another scale (3/10, 80%) are no grades: they are never clipped or converted.
    """
    for kind in _MENTIONS:
        mentions = list(kind.finditer(completion))
        if mentions:
            grade, most = float(mentions[-1]["grade"].replace(",", ".")), mentions[-1]["most"]
            on_scale = most is None or most.lower() in ("5", "5.0", "five")
            return grade if on_scale and GRADES[0] <= grade <= GRADES[-1] else None
    return None


class Rating:
    """The grade that the model writes in at most `tokens` tokens."""

    def __init__(self, backend: Backend, tokens: int) -> None:
        self.backend = backend
        self.tokens = tokens

    def __call__(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with one score per response, in their order; identical responses are asked about once."""
        requests = [_text_request(example, text) for example in examples for text in distinct(example)]
        found = greedy(self.backend, requests, self.tokens)
        return [
            replace(e, scores=tuple(_graded(found[_key(e, response.text)]) for response in e.responses))
            for e in examples
        ]


class ExpectedRating:
    """The mean grade under the model's distribution over the five digits."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def __call__(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with one score per response, in their order; identical responses are asked about once."""
        requests = [_label_request(example, text) for example in examples for text in distinct(example)]
        results = iter(self.backend.label_logprobs(requests))
        found = [{text: _expected(next(results)) for text in distinct(example)} for example in examples]
        return [
            replace(e, scores=tuple(scores[response.text] for response in e.responses))
            for e, scores in zip(examples, found, strict=True)
        ]


def rescore(example: Example) -> Example:
    """The grades read again from the completions that were kept. Raises DataError where there are none."""
    evidence(example, "rating", "text")
    return replace(example, scores=tuple(map(_from_text, example.scores)))


def rescore_expected(example: Example) -> Example:
    """The mean grades from the kept log-probabilities. Raises DataError where there are none."""
    scores = zip(example.scores, evidence(example, "rating-expected", "grades"), strict=True)
    again = (replace(s, value=mean_grade(kept["grades"]), reason=None) if kept else s for s, kept in scores)
    return replace(example, scores=tuple(again))


def mean_grade(logprobs: Sequence[float]) -> float:
    """sum_k k p_k / sum_k p_k over the grades 1 to 5, from log p_k (5,), natural log."""
    top = max(logprobs)
    weights = [math.exp(value - top) for value in logprobs]
    return math.fsum(k * weight for k, weight in zip(GRADES, weights, strict=True)) / math.fsum(weights)


# What is asked


@cache
def _wording() -> dict[str, Any]:
    return read_table(QUESTIONS / "rating.toml")


def _ask(messages: Messages, answer_format: str, text: str) -> Messages:
    wording = _wording()
    values = {"{request}": flatten(messages), "{response}": text, "{answer_format}": wording[answer_format].lstrip()}
    return (Message("user", fill(wording["layout"].lstrip("\n"), values)),)


def _key(example: Example, text: str) -> str:
    return f"{example.id}, response {distinct(example)[text]}"


def _text_request(example: Example, text: str) -> SampleRequest:
    quoted = Quoted(partial(_ask, example.messages, "answer_as_text"), (text,))
    return SampleRequest(_key(example, text), quoted.messages, quoted=quoted)


def _label_request(example: Example, text: str) -> LabelRequest:
    labels = tuple(tuple(_wording()["labels"][str(grade)]) for grade in GRADES)
    return LabelRequest(example.id, partial(_ask, example.messages, "answer_as_label"), text, labels)


# What the answers mean


def _graded(result: SampleResult) -> Score:
    if not result.responses:
        return Score(math.nan, reason=result.reason)
    response = result.responses[0]
    kept: dict[str, Any] = {"text": response.text} | ({} if response.finished else {"finished": False})
    return _from_text(Score(math.nan, truncated=result.truncated, evidence=kept))


def _from_text(score: Score) -> Score:
    if not score.evidence:
        return score
    grade = parse_grade(score.evidence["text"])
    if grade is not None:
        return replace(score, value=grade, reason=None)
    if score.evidence.get("finished", True):
        return missing(score, "no grade from 1 to 5 in the completion")
    return missing(score, "cut off at the token limit before a grade; raise --judge-tokens")


def _expected(result: LabelResult) -> Score:
    if result.reason is not None:
        return Score(math.nan, result.mass, result.truncated, result.reason)
    logprobs = list(result.logprobs)
    return Score(mean_grade(logprobs), result.mass, result.truncated, evidence={"grades": logprobs})
