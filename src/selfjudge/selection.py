"""Scored responses -> the ones to train on, best first, with their log-strengths.

    >>> from selfjudge.records import Message, Response, Score
    >>> texts, log_odds = ("4", "5", "four"), (3.0, -2.0, 1.0)
    >>> example = Example("1", (Message("user", "What is 2 + 2?"),), responses=tuple(map(Response, texts)),
    ...                   scores=tuple(map(Score, log_odds)))
    >>> chosen = select(example, SelectionRule()).example
    >>> [response.text for response in chosen.responses], chosen.strengths
    (['4', '5'], (2.5, -2.5))

With one soft judge the Bradley-Terry log-strength of a response is its score over the judge's temperature, s / T, so
the target of a pair is z = (s_w - s_l) / T (iREPO, arXiv 2405.15230, joined with a soft judge).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from selfjudge.answer_keys import ANSWER_KEYS
from selfjudge.errors import ConfigError, DataError
from selfjudge.records import Example

Order = Sequence[int]
"""Indices of responses, best first."""


def best_worst(order: Order) -> Order:
    """The first and the last: one pair per prompt."""
    return (order[0], order[-1])


def all_pairs(order: Order) -> Order:
    """Everything: every difference of strengths becomes a pair."""
    return order


SELECTIONS: dict[str, Callable[[Order], Order]] = {"best-worst": best_worst, "all-pairs": all_pairs}


@dataclass(frozen=True)
class SelectionRule:
    """How responses are ranked and which are kept."""

    method: str = "best-worst"
    """A name in SELECTIONS."""
    temperature: float = 1.0
    """Of the judge: log-strength = score / temperature."""
    min_margin: float = 0.0
    """Least difference of log-strength between best and worst, in nats; a prompt below it is dropped."""
    agreement: float = 0.0
    """Weight a in the ranking by s + a log(count of this answer among the K samples); 0 ranks by s alone."""
    agreement_key: str = "exact"
    """A name in ANSWER_KEYS: answers are counted as the same when their keys are equal."""
    keep_unfinished: bool = False
    """Keep responses that were cut off at the token limit."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be {allowed}, found {getattr(self, name)!r}"
            for name, allowed, valid in (
                ("method", f"one of {', '.join(SELECTIONS)}", self.method in SELECTIONS),
                ("temperature", "finite and above 0", 0 < self.temperature < math.inf),
                ("min_margin", "finite and at least 0", 0 <= self.min_margin < math.inf),
                ("agreement", "finite and at least 0", 0 <= self.agreement < math.inf),
                ("agreement_key", f"one of {', '.join(ANSWER_KEYS)}", self.agreement_key in ANSWER_KEYS),
            )
            if not valid
        ]
        if problems:
            raise ConfigError("; ".join(problems))


@dataclass(frozen=True)
class Selected:
    """The prompt with the kept responses, best first, and their scores and strengths in the same order."""

    example: Example


@dataclass(frozen=True)
class Dropped:
    """The prompt gives no pair; `reason` is one of a few fixed texts, made for counting."""

    reason: str


def select(example: Example, rule: SelectionRule) -> Selected | Dropped:
    """Filter, rank, keep. Raises DataError when the responses have not been scored."""
    if len(example.scores) != len(example.responses):
        found = f"{len(example.responses)} responses but {len(example.scores)} scores"
        raise DataError(f"example {example.id!r} has {found}; judge the responses first")
    usable = _usable(example, rule)
    if isinstance(usable, Dropped):
        return usable
    strengths = _log_strengths(example, rule)
    order = sorted(usable, key=lambda index: (-strengths[index], index))  # ties break by index
    margin = strengths[order[0]] - strengths[order[-1]]
    if margin == 0:
        return Dropped("all responses equally strong")
    if margin < rule.min_margin:
        return Dropped("margin below min_margin")
    return Selected(_keep(example, SELECTIONS[rule.method](order), strengths))


def _usable(example: Example, rule: SelectionRule) -> list[int] | Dropped:
    """Indices of the responses that can be ranked; Dropped, naming the filter at fault, when fewer than 2 are left."""
    kept = [i for i, response in enumerate(example.responses) if response.finished or rule.keep_unfinished]
    if len(kept) < 2:
        return Dropped("fewer than 2 finished responses")
    kept = [i for i in kept if math.isfinite(example.scores[i].value)]
    if len(kept) < 2:
        return Dropped("fewer than 2 scored responses")
    first = {example.responses[i].text: i for i in reversed(kept)}  # the earliest index of a text wins
    kept = list(first.values())
    if len(kept) < 2:
        return Dropped("fewer than 2 distinct responses")
    return kept


def _log_strengths(example: Example, rule: SelectionRule) -> list[float]:
    """Per response (K,) in nats: (s + a log count) / T. All K samples count, also those that a filter leaves out."""
    return [
        (score.value + rule.agreement * math.log(count)) / rule.temperature
        for score, count in zip(example.scores, answer_counts(example, rule.agreement_key), strict=True)
    ]


def answer_counts(example: Example, agreement_key: str) -> list[int]:
    """Per response (K,): how many of the K have its key, itself included."""
    keys = [ANSWER_KEYS[agreement_key](response.text) for response in example.responses]
    counts = Counter(keys)
    return [counts[key] for key in keys]


def _keep(example: Example, order: Order, strengths: Sequence[float]) -> Example:
    """The example with these responses in this order; strengths centred on them, gold pointing at the new places."""
    mean = math.fsum(strengths[i] for i in order) / len(order)
    gold = None if example.gold is None else tuple(new for new, old in enumerate(order) if old in example.gold)
    return replace(
        example,
        responses=tuple(example.responses[i] for i in order),
        scores=tuple(example.scores[i] for i in order),
        strengths=tuple(strengths[i] - mean for i in order),
        gold=gold,
    )
