"""Rows -> figures with intervals, shared by the steps that measure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from selfjudge import stats
from selfjudge.records import Example

BOOTSTRAP_SEED = 0

Difference = tuple[str, str, float]
"""Prompt id, kind of the wrong response (empty where not named), score of the right one minus that of the wrong one."""


@dataclass
class Measure:
    """A running mean over values that are not NaN."""

    total: float = 0.0
    count: int = 0

    def add(self, values: Iterable[float]) -> None:
        for value in values:
            if not math.isnan(value):
                self.total += value
                self.count += 1

    @property
    def mean(self) -> float:
        """NaN without values."""
        return self.total / self.count if self.count else math.nan


def interval_of(values: Sequence[float], groups: Sequence[str] | None = None) -> dict[str, Any]:
    """Mean with its 95 % bootstrap interval over prompts, as the summaries hold it."""
    interval = stats.mean_interval(list(values), None if groups is None else list(groups), seed=BOOTSTRAP_SEED)
    return {"value": interval.estimate, "low": interval.low, "high": interval.high, "n": len(values)}


def pair_differences(example: Example) -> list[Difference]:
    """Every (right, wrong) pair of an example whose right responses are known; none otherwise."""
    if not example.gold or not example.scores:
        return []
    kinds = example.tags.get("kinds", [""] * len(example.scores))
    wrong = [index for index in range(len(example.scores)) if index not in example.gold]
    score = [s.log_odds for s in example.scores]
    return [(example.id, kinds[w], score[right] - score[w]) for right in example.gold for w in wrong]


def judge_figures(differences: Sequence[Difference]) -> dict[str, Any]:
    """Accuracy over all pairs (ties half), the strict figure, and the accuracy against each kind of wrong response."""
    counted = stats.accuracy([difference for _, _, difference in differences])
    figures: dict[str, Any] = {"judge_accuracy": _accuracy(differences)}
    for kind in sorted({kind for _, kind, _ in differences if kind}):
        figures[f"judge_accuracy_{kind}"] = _accuracy([d for d in differences if d[1] == kind])
    return figures | {"judge_strict": counted.strict, "pairs": counted.n, "ties": counted.ties}


def agreement_figures(pairs: Sequence[tuple[Example, Example]]) -> dict[str, Any]:
    """How two judges rank the same responses: one pair of an example, scored in place and by the separate question.

    Kendall's tau-b and the share of the same best response, means over prompts; where the right answer is known, how
    often the best one is right. Repeated responses count once; prompts with a single or an unjudged one are left out.
    """
    ranked = [(_scores_by_text(one), _scores_by_text(other), one) for one, other in pairs]
    usable = [(a, b, one) for a, b, one in ranked if len(a) > 1 and not math.isnan(sum([*a.values(), *b.values()]))]
    taus = [stats.kendall_tau_b([*a.values()], [b[text] for text in a]) for a, b, _ in usable]
    known = [(a, b, one) for a, b, one in usable if one.gold or one.reference is not None]
    figures = {
        "kendall_tau": interval_of([tau for tau in taus if not math.isnan(tau)]),
        "same_best": interval_of([float(_best(a) == _best(b)) for a, b, _ in usable]),
    }
    if known:
        figures["best_right_in_place"] = interval_of([_is_right(one, _best(a)) for a, _, one in known])
        figures["best_right_separate"] = interval_of([_is_right(one, _best(b)) for _, b, one in known])
    return figures


def _scores_by_text(example: Example) -> dict[str, float]:
    """The first of equal texts, in the order of the responses."""
    scores: dict[str, float] = {}
    for response, score in zip(example.responses, example.scores, strict=True):
        scores.setdefault(response.text, score.log_odds)
    return scores


def _best(scores: dict[str, float]) -> str:
    return max(scores, key=lambda text: scores[text])


def _is_right(example: Example, text: str) -> float:
    if example.gold is not None:
        return float(any(example.responses[index].text == text for index in example.gold))
    return float(text.strip() == str(example.reference).strip())


def _accuracy(differences: Sequence[Difference]) -> dict[str, Any]:
    credits = stats.credit([difference for _, _, difference in differences])
    return interval_of(credits.tolist(), [group for group, _, _ in differences])
