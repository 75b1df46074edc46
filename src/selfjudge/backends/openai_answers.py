"""What an API's answer says, nothing asked here: log-probabilities of labels, a sampled response.

    >>> top = [{"token": "Yes", "logprob": -0.1}, {"token": "No", "logprob": -2.5}]
    >>> answer = {"choices": [{"logprobs": {"content": [{"token": "No", "top_logprobs": top}]}}]}
    >>> label_result(answer, (("Yes",), ("No",)), with_mass=False, truncated=False).logprobs
    (-0.1, -2.5)

An API gives the k most probable tokens only. A label outside of them has at most the probability of the last of them
per spelling, and at most all that is left: that bound stands in its place, and the result is marked as `bounded`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

from selfjudge.backends import LabelResult
from selfjudge.records import Response

ROUNDING = 1e-6
"""What the listed probabilities, rounded to float32, may add up to too much."""
NOTHING = -9999.0
"""How servers write the logarithm of 0, or of what they do not know."""

Answer = dict[str, Any]


class MissingLogprobs(ValueError):
    """The answer has no log-probabilities; the message says what exactly is missing."""


class Listed(NamedTuple):
    """One of the most probable tokens: its text and natural-log probability."""

    token: str
    logprob: float


def label_result(answer: Answer, labels: tuple[tuple[str, ...], ...], with_mass: bool, truncated: bool) -> LabelResult:
    """One log-probability per label: of all entries whose text is exactly one of its spellings.

    A label without an entry gets the bound; where no label has one, all are NaN with the reason. Of a label with an
    entry, other spellings outside of the list are left out. The mass is what the entries show, a lower bound. Raises
    MissingLogprobs.
    """
    listed, sampled = _most_probable(answer)
    seen = [math.fsum(math.exp(one.logprob) for one in listed if one.token in spellings) for spellings in labels]
    mass = math.fsum(seen) if with_mass else math.nan
    if not any(seen):
        reason = f"none of the labels is among the {len(listed)} most probable tokens that the server lists"
        return LabelResult((math.nan,) * len(labels), mass, truncated, reason=reason)
    values = tuple(
        math.log(probability) if probability else unlisted_bound(listed, sampled, len(spellings))
        for probability, spellings in zip(seen, labels, strict=True)
    )
    return LabelResult(values, mass, truncated, bounded=not all(seen))


def unlisted_bound(listed: list[Listed], sampled: str, tokens: int) -> float:
    """The highest log-probability that this many tokens outside of the list can have together.

    The sampled token does not count as the last of the list: a server may put it there although others go before it.
    """
    ranked = sorted(listed, key=lambda one: one.logprob)
    last = ranked[1] if len(ranked) > 1 and ranked[0].token == sampled else ranked[0]
    rest = 1 - math.fsum(math.exp(one.logprob) for one in listed)
    return min(last.logprob + math.log(tokens), math.log(max(rest, 0) + ROUNDING))


def _most_probable(answer: Answer) -> tuple[list[Listed], str]:
    """The entries of the first token's `top_logprobs`, and the token that was sampled."""
    logprobs = _choice(answer).get("logprobs")
    if not isinstance(logprobs, dict):
        raise MissingLogprobs("choices[0].logprobs is missing")
    content = cast(Answer, logprobs).get("content")
    if not isinstance(content, list) or not content or not isinstance(content[0], dict):
        raise MissingLogprobs("choices[0].logprobs.content is empty")
    first = cast(Answer, content[0])
    listed = [found for entry in first.get("top_logprobs") or () if (found := _entry(entry))]
    if not listed:
        raise MissingLogprobs("choices[0].logprobs.content[0].top_logprobs is empty")
    return listed, str(first.get("token"))


def _entry(entry: Any) -> Listed | None:
    """None for an entry without a probability above 0."""
    if not isinstance(entry, dict):
        return None
    token, logprob = entry.get("token"), entry.get("logprob")
    if not isinstance(token, str) or not isinstance(logprob, int | float) or logprob <= NOTHING:
        return None
    return Listed(token, min(float(logprob), 0.0))


def response_of(answer: Answer) -> Response:
    """A sampled response; token ids and log-probability are not known. Raises ValueError where there is no text.

    A null as content is an empty response: all of it went into a thinking part that the server keeps apart.
    """
    choice = _choice(answer)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise ValueError("choices[0].message is missing")
    content = cast(Answer, message).get("content")
    if not (content is None or isinstance(content, str)):
        raise ValueError("choices[0].message.content is not text")
    return Response(content or "", finished=choice.get("finish_reason") == "stop")


def _choice(answer: Answer) -> Answer:
    return cast(Answer, answer["choices"][0])


def is_answer(value: Any) -> bool:
    """Whether a server's JSON is an answer at all: an object with at least one choice, itself an object."""
    if not isinstance(value, dict):
        return False
    choices = cast(Answer, value).get("choices")
    return isinstance(choices, list) and bool(choices) and isinstance(choices[0], dict)
