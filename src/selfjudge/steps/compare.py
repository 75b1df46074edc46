"""Two judges on the same rows: how far apart they are, how sure that is, and on which rows they differ.

    selfjudge compare runs/bench/one runs/bench/other --out differ.jsonl

Rows are joined by id. A row is right for a judge when each of its right responses scores higher than each wrong one, on
that judge's own scale; no score of one judge meets a score of the other.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from selfjudge import stats
from selfjudge.config import CompareConfig
from selfjudge.console import Console
from selfjudge.errors import ConfigError, DataError
from selfjudge.inputs import refuse_unfinished
from selfjudge.measures import BOOTSTRAP_SEED, interval_of, pair_differences, prompt_number
from selfjudge.records import Example, Score
from selfjudge.steps import Summary
from selfjudge.steps.bench import ROWS, Judged, content_digest
from selfjudge.store import Row, meta_path, read_meta, without_nan, write_rows_atomic

SHOWN = 5
"""Rows that only one judge has right, printed."""
EXCERPT = 60
"""Characters of their prompts."""


def run(config: CompareConfig, console: Console) -> Summary:
    """The comparison; with `--out` the rows that only one of the two has right are written there."""
    paths = (Path(config.a) / ROWS, Path(config.b) / ROWS)
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path.parent}: has no {ROWS}; give the --out folder of selfjudge bench")
        refuse_unfinished(str(path))
    if config.out is not None and meta_path(config.out).exists():
        raise ConfigError(f"--out {config.out}: holds the rows of another command; give another file")
    same = _same_benchmark(*paths)
    if not same:
        console.say("compare: the two runs read different benchmark files or limits; only rows that both have count")
    first, others = Judged(paths[0]), _scores_of(Judged(paths[1]))
    pairs = _compare(first, others, config)
    if config.out is not None:
        write_rows_atomic(config.out, _flipped(first, others))
    counts = {"rows": pairs.rows, "only_in_a": len(first) - pairs.rows, "only_in_b": len(others) - pairs.rows}
    shown = {row["id"]: _line(row) for row in islice(_flipped(first, others), SHOWN)}
    found = counts | {"same_benchmark": same} | pairs.figures() | ({"differ": shown} if shown else {})
    return without_nan(found)


def _same_benchmark(*paths: Path) -> bool:
    digests = {((read_meta(path) or {}).get("inputs", {}).get("benchmark", {})).get("sha256") for path in paths}
    return len(digests) == 1


class _Judgement(NamedTuple):
    """What the second judge said of a row, and of which content."""

    content: bytes
    scores: tuple[float, ...]


def _scores_of(judged: Iterable[Example]) -> dict[str, _Judgement]:
    return {e.id: _Judgement(content_digest(e), tuple(score.value for score in e.scores)) for e in judged}


def _compare(first: Iterable[Example], others: dict[str, _Judgement], config: CompareConfig) -> _Compared:
    compared = _Compared()
    for one, other in _common(first, others):
        if content_digest(one) != others[one.id].content:
            raise DataError(
                f"row {one.id}: {config.a} and {config.b} have different responses or right ones under this id; "
                "compare two runs of one benchmark"
            )
        compared.add(one, other)
    if not compared.rows:
        raise DataError(f"{config.a} and {config.b} have no row in common; compare two runs of one benchmark")
    if not compared.credits_a:
        raise DataError(f"{config.a} and {config.b}: no common row has both right and wrong responses to compare on")
    return compared


def _common(first: Iterable[Example], others: dict[str, _Judgement]) -> Iterator[tuple[Example, Example]]:
    """The rows of both, once with the scores of either judge."""
    for one in first:
        if one.id in others:
            yield one, replace(one, scores=tuple(map(Score, others[one.id].scores)))


def _differences(example: Example) -> list[float]:
    return [difference for _, difference in pair_differences(example)]


def _is_right(differences: Sequence[float]) -> float:
    """1 or 0; NaN where a score is missing or nothing is labelled."""
    if not differences or math.isnan(sum(differences)):
        return math.nan
    return float(min(differences) > 0)


def _doubles() -> array[float]:
    return array("d")


def _numbers() -> array[int]:
    return array("Q")


@dataclass
class _Compared:
    """What is kept of the rows of both: 32 bytes a pair and 16 a row."""

    rows: int = 0
    right_a: array[float] = field(default_factory=_doubles)
    right_b: array[float] = field(default_factory=_doubles)
    credits_a: array[float] = field(default_factory=_doubles)
    credits_b: array[float] = field(default_factory=_doubles)
    prompts: array[int] = field(default_factory=_numbers)
    subsets: array[int] = field(default_factory=_numbers)
    names: dict[str, int] = field(default_factory=dict[str, int])

    def add(self, one: Example, other: Example) -> None:
        """One row with the scores of either judge."""
        ours, theirs = _differences(one), _differences(other)
        self.rows += 1
        self.right_a.append(_is_right(ours))
        self.right_b.append(_is_right(theirs))
        self.credits_a.extend(stats.credit(ours))
        self.credits_b.extend(stats.credit(theirs))
        subset = self.names.setdefault(str(one.tags.get("subset", "")), len(self.names)) if ours else 0
        for _ in ours:
            self.prompts.append(prompt_number(one.messages))
            self.subsets.append(subset)

    def figures(self) -> Summary:
        """Accuracies on the pairs that both judged, their difference, McNemar's test over rows, the same by subset."""
        one, other = np.asarray(self.credits_a, float), np.asarray(self.credits_b, float)
        missing = {"missing_in_a": int(np.isnan(one).sum()), "missing_in_b": int(np.isnan(other).sum())}
        only_a, only_b = stats.discordant(_signed(self.right_a), _signed(self.right_b))
        test = {"only_a_right": only_a, "only_b_right": only_b, "p": stats.mcnemar(only_a, only_b)}
        everything = np.ones(len(one), bool)
        return {"pairs": len(one)} | missing | self._between(everything) | {"mcnemar": test} | self._by_subset()

    def _between(self, chosen: NDArray[np.bool_]) -> Summary:
        one, other = np.asarray(self.credits_a, float), np.asarray(self.credits_b, float)
        both = chosen & ~(np.isnan(one) | np.isnan(other))
        one, other, prompts = one[both], other[both], np.asarray(self.prompts, np.uint64)[both]
        apart = stats.difference_interval(one, other, prompts, seed=BOOTSTRAP_SEED)
        return {
            "accuracy_a": interval_of(one, prompts),
            "accuracy_b": interval_of(other, prompts),
            "difference": {"value": apart.estimate, "low": apart.low, "high": apart.high, "n": len(one)},
        }

    def _by_subset(self) -> Summary:
        """Nothing where there is one subset or none."""
        if len(self.names) < 2:
            return {}
        subsets = np.asarray(self.subsets)
        return {"by_subset": {name: self._between(subsets == number) for name, number in sorted(self.names.items())}}


def _signed(right: Sequence[float]) -> NDArray[np.float64]:
    """1 for a right row, -1 for a wrong one, NaN for one that is missing."""
    return 2 * np.asarray(right, float) - 1


# Rows that only one judge has right


def _flipped(first: Iterable[Example], others: dict[str, _Judgement]) -> Iterator[Row]:
    for one, other in _common(first, others):
        right = (_is_right(_differences(one)), _is_right(_differences(other)))
        if right in ((1, 0), (0, 1)):
            yield _row(one, other, "a" if right[0] else "b")


def _row(one: Example, other: Example, right: str) -> Row:
    row = replace(one, scores=()).to_json()
    return row | {"only_right": right, "scores_a": _values(one), "scores_b": _values(other)}


def _values(example: Example) -> list[float]:
    return [score.value for score in example.scores]


def _line(row: dict[str, Any]) -> str:
    prompt = " ".join(row["messages"][-1]["content"].split())
    excerpt = prompt if len(prompt) <= EXCERPT else prompt[: EXCERPT - 3] + "..."
    scores = ("/".join(f"{value:.3g}" for value in row[name]) for name in ("scores_a", "scores_b"))
    return "only {} is right (a {}, b {}): {}".format(row["only_right"], *scores, excerpt)
