"""Judges that ask no model: the truth where it is known (upper bound) and chance (must not improve anything)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import NormalDist

from selfjudge.errors import DataError
from selfjudge.records import Example, Score

ORACLE_LOG_ODDS = 5.0
RANDOM_SPREAD = 5.0
"""Standard deviation of the random log-odds in nats, of the size that a confident judge gives."""


def oracle(examples: Sequence[Example]) -> list[Example]:
    """+5 nats for a response that equals the example's reference answer, -5 for any other."""
    return [_with_truth(example) for example in examples]


def _with_truth(example: Example) -> Example:
    if example.reference is None:
        raise DataError(f"{example.id}: the oracle judge needs a `reference` answer in every row")
    signs = [1 if response.text.strip() == example.reference.strip() else -1 for response in example.responses]
    return replace(example, scores=tuple(Score(sign * ORACLE_LOG_ODDS) for sign in signs))


def random(seed: int) -> Callable[[Sequence[Example]], list[Example]]:
    """Normal log-odds from a hash of seed, example and response text; identical responses get the same."""

    def judge(examples: Sequence[Example]) -> list[Example]:
        return [_with_chance(seed, example) for example in examples]

    return judge


def _with_chance(seed: int, example: Example) -> Example:
    scores = [Score(_normal(f"{seed}\x1f{example.id}\x1f{response.text}")) for response in example.responses]
    return replace(example, scores=tuple(scores))


def _normal(key: str) -> float:
    number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
    uniform = (number + 0.5) * math.ldexp(1, -64)
    return RANDOM_SPREAD * NormalDist().inv_cdf(min(max(uniform, 1e-15), 1 - 1e-15))
