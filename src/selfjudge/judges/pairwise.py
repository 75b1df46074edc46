"""The pairwise judges: every two responses side by side, in both orders.

    d_ij = (log-odds for i, shown first, + log-odds for i, shown second) / 2        nats; a liking for one place cancels
    s_i  = (1 / K) sum_j d_ij                                                       s_i - s_j fits d_ij in least squares

`pairwise` reads the log-odds of the labels A and B; `pairwise-verdict` lets the model write a verdict, counts votes (a
tie is half a vote each) and turns them into log-strengths with `selfjudge.ranking.zermelo`.
K is the number of distinct responses to a prompt; identical ones are shown once and get the same score.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import combinations
from typing import Any, Literal, NamedTuple

import numpy as np

from selfjudge.backends import Backend, LabelRequest, LabelResult, Messages, Quoted, SampleRequest, SampleResult
from selfjudge.judges.asking import distinct, evidence, greedy, missing
from selfjudge.questions import QUESTIONS, fill, flatten, read_table
from selfjudge.ranking import zermelo
from selfjudge.readers import hash_share
from selfjudge.records import Example, Message, Score

Orders = Literal["both", "one"]
PRIOR = 1.0
"""Weight of the logistic prior of the vote count: a response that always wins has a finite strength."""
NOTHING_TO_COMPARE = "no other response to compare with"
NO_VERDICT = "no verdict on this response could be read"

_CHOICE = r"(?P<choice>(?i:(?:an?\s+)?tie)|[ABC])\b(?!\s*(?:/|\bor\b|\band\b)\s*[ABC]\b)"
_VERDICTS = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        rf"\[\[\s*(?i:response\s+)?{_CHOICE}\s*\]\]",
        rf"\b(?i:verdict|answer|winner|choice)\b(?:[ \t*_`:=\[(\"']|\bis\b)+(?i:response\s+)?{_CHOICE}",
        rf"^[ \t*_`>#\"'(]*(?i:response\s+)?{_CHOICE}[ \t*_`.\"')]*$",
    )
)
"""The ways to give a verdict, the most explicit one first: in double brackets, after a word for it, alone in a line."""


def parse_verdict(completion: str) -> float | None:
    """What response A gets: 1 where A is better, 0 where B is, 0.5 for a tie (also written C); None for no verdict.

    Of several verdicts the most explicit kind counts (`_VERDICTS`) and of one kind the last.
    """
    for kind in _VERDICTS:
        verdicts = list(kind.finditer(completion))
        if verdicts:
            return {"A": 1.0, "B": 0.0}.get(verdicts[-1]["choice"], 0.5)
    return None


class Shown(NamedTuple):
    """A comparison: the places in the example of the responses shown as A and as B."""

    first: int
    second: int


def comparisons(example: Example, orders: Orders, seed: int) -> list[Shown]:
    """Every two distinct responses, in both orders, or in the one that a hash of seed, row and texts picks."""
    pairs = combinations(distinct(example).values(), 2)
    shown = [order for i, j in pairs for order in (Shown(i, j), Shown(j, i))]
    return sorted(order for order in shown if orders == "both" or _is_picked(example, order, seed))


def _is_picked(example: Example, shown: Shown, seed: int) -> bool:
    """True for one of the two orders, whatever places the responses have in the row."""
    first, second = (example.responses[index].text for index in shown)
    low, high = sorted((first, second))
    return (hash_share(f"{seed}\x1f{example.id}\x1f{low}\x1f{high}") < 0.5) == (first == low)


class Pairwise:
    """Log-odds of A against B for every two responses."""

    def __init__(self, backend: Backend, orders: Orders = "both", seed: int = 0) -> None:
        self.backend = backend
        self.orders: Orders = orders
        self.seed = seed

    def __call__(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with one score per response, in their order."""
        asked = [comparisons(example, self.orders, self.seed) for example in examples]
        pairs = [(example, shown) for example, own in zip(examples, asked, strict=True) for shown in own]
        results = iter(self.backend.label_logprobs([_label_request(*pair) for pair in pairs]))
        found = [{shown: next(results) for shown in own} for own in asked]
        return [_compared(example, own) for example, own in zip(examples, found, strict=True)]


class PairwiseVerdict:
    """Verdicts that the model writes in at most `tokens` tokens, for every two responses."""

    def __init__(self, backend: Backend, tokens: int, orders: Orders = "both", seed: int = 0) -> None:
        self.backend = backend
        self.tokens = tokens
        self.orders: Orders = orders
        self.seed = seed

    def __call__(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with one score per response, in their order."""
        asked = [comparisons(example, self.orders, self.seed) for example in examples]
        pairs = [(example, shown) for example, own in zip(examples, asked, strict=True) for shown in own]
        found = greedy(self.backend, [_text_request(*pair) for pair in pairs], self.tokens)
        return [
            _voted(example, {shown: found[_key(example, shown)] for shown in own})
            for example, own in zip(examples, asked, strict=True)
        ]


def rescore(example: Example) -> Example:
    """The scores from the kept log-odds. Raises DataError where there are none."""
    kept = evidence(example, "pairwise", "against")
    scores = (_mean_odds(score, own["against"]) for score, own in zip(example.scores, kept, strict=True))
    return replace(example, scores=tuple(scores))


def rescore_verdicts(example: Example) -> Example:
    """The verdicts read and counted again from the kept texts. Raises DataError where there are none."""
    kept = [own["verdicts"] for own in evidence(example, "pairwise-verdict", "verdicts")]
    places = list(distinct(example).values())
    votes, heard = np.zeros((len(places), len(places))), set[int]()
    for first, second, verdict in _verdicts(kept, places):
        if verdict is not None:
            heard |= {first, second}
            votes[places.index(first), places.index(second)] += verdict
            votes[places.index(second), places.index(first)] += 1 - verdict
    return _with_strengths(example, votes, [index for index in places if index in heard])


def both_orders(example: Example) -> Iterator[tuple[float, float]]:
    """For each pair compared in both orders: how far the earlier response won when it was shown first, and second.

    Read from the evidence of either pairwise judge: log-odds in nats, or 1, 0 (a tie) and -1 for a written verdict. A
    pair of which an answer is missing is left out.
    """
    for index in distinct(example).values():
        kept = example.scores[index].evidence
        for other, odds in kept.get("against", {}).items():
            if index < int(other) and None not in odds:
                yield odds[0], odds[1]
        for other, text in kept.get("verdicts", {}).items():
            turned = example.scores[int(other)].evidence["verdicts"].get(str(index))
            if index < int(other) and turned is not None:
                first, second = parse_verdict(text), parse_verdict(turned)
                if first is not None and second is not None:
                    yield 2 * first - 1, 1 - 2 * second


def order_flips(example: Example) -> Iterator[float]:
    """For each pair compared in both orders: 1 where the order turned the verdict around, else 0."""
    return (float(first * second < 0) for first, second in both_orders(example))


# What is asked


@cache
def _wording() -> dict[str, Any]:
    return read_table(QUESTIONS / "pairwise.toml")


def _ask(messages: Messages, answer_format: str, first: str, second: str) -> Messages:
    wording = _wording()
    answer = wording[answer_format].lstrip()
    values = {"{request}": flatten(messages), "{first}": first, "{second}": second, "{answer_format}": answer}
    return (Message("user", fill(wording["layout"].lstrip("\n"), values)),)


def _quoted(example: Example, shown: Shown, answer_format: str) -> Quoted:
    texts = tuple(example.responses[index].text for index in shown)
    return Quoted(partial(_ask, example.messages, answer_format), texts)


def _label_request(example: Example, shown: Shown) -> LabelRequest:
    labels = tuple(tuple(_wording()["labels"][name]) for name in ("first", "second"))
    quoted = _quoted(example, shown, "answer_as_label")
    return LabelRequest(example.id, quoted.render, quoted.texts[0], labels, more=quoted.texts[1:])


def _key(example: Example, shown: Shown) -> str:
    return f"{example.id}, response {shown.first} before {shown.second}"


def _text_request(example: Example, shown: Shown) -> SampleRequest:
    quoted = _quoted(example, shown, "answer_as_text")
    return SampleRequest(_key(example, shown), quoted.messages, quoted=quoted)


# What the answers mean: log-odds


def _compared(example: Example, results: dict[Shown, LabelResult]) -> Example:
    places = distinct(example)
    by_place = {index: _against_others(index, list(places.values()), results) for index in places.values()}
    return replace(example, scores=tuple(by_place[places[response.text]] for response in example.responses))


def _against_others(index: int, places: Sequence[int], results: dict[Shown, LabelResult]) -> Score:
    own = [result for shown, result in results.items() if index in shown]
    against = {
        str(other): [_odds(results.get(Shown(index, other))), _odds(results.get(Shown(other, index)), -1)]
        for other in places
        if other != index
    }
    mass = math.fsum(result.mass for result in own) / len(own) if own else math.nan
    reason = next((result.reason for result in own if result.reason), None)
    score = Score(math.nan, mass, any(result.truncated for result in own), reason, {"against": against})
    return _mean_odds(score, against)


def _odds(result: LabelResult | None, sign: int = 1) -> float | None:
    """Log-odds of A against B, of B against A with `sign` -1; None for an order without an answer."""
    return None if result is None or result.reason else sign * (result.logprobs[0] - result.logprobs[1])


def _mean_odds(score: Score, against: dict[str, list[float | None]]) -> Score:
    """`against`: other response -> log-odds for this one, shown first and shown second."""
    if not against:
        return missing(score, NOTHING_TO_COMPARE)
    answered = ([odds for odds in pair if odds is not None] for pair in against.values())
    differences = [math.fsum(odds) / len(odds) for odds in answered if odds]
    if not differences:
        return score
    return replace(score, value=math.fsum(differences) / (len(differences) + 1), reason=None)


# What the answers mean: verdicts


def _voted(example: Example, results: dict[Shown, SampleResult]) -> Example:
    places = distinct(example)
    by_place = {index: _unscored(index, results) for index in places.values()}
    scores = tuple(by_place[places[response.text]] for response in example.responses)
    return rescore_verdicts(replace(example, scores=scores))


def _unscored(index: int, results: dict[Shown, SampleResult]) -> Score:
    """The verdicts on the response where it was shown first; those where it was second are kept with the others."""
    texts = {
        str(shown.second): result.responses[0].text
        for shown, result in results.items()
        if shown.first == index and result.responses
    }
    truncated = any(result.truncated for shown, result in results.items() if index in shown)
    return Score(math.nan, truncated=truncated, evidence={"verdicts": texts})


def _verdicts(kept: Sequence[dict[str, str]], places: Sequence[int]) -> Iterator[tuple[int, int, float | None]]:
    """Response shown as A, response shown as B, and what A got."""
    for first in places:
        for second, text in kept[first].items():
            yield first, int(second), parse_verdict(text)


def _with_strengths(example: Example, votes: Any, heard: Sequence[int]) -> Example:
    """Log-strengths of the responses on which there is a verdict; missing for the others."""
    places = distinct(example)
    rows = [list(places.values()).index(index) for index in heard]
    strengths = dict(zip(heard, zermelo(votes[np.ix_(rows, rows)], PRIOR).tolist(), strict=True)) if heard else {}
    reason = NO_VERDICT if len(distinct(example)) > 1 else NOTHING_TO_COMPARE
    scores = [
        replace(score, value=strengths[places[response.text]], reason=None)
        if places[response.text] in strengths
        else missing(score, reason)
        for response, score in zip(example.responses, example.scores, strict=True)
    ]
    return replace(example, scores=tuple(scores))
