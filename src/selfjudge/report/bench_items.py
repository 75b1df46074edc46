"""The last section of the page of benchmark runs: single items, with what every run said of them side by side.

    >>> item_table(bench)["items"][0]
    ['lab-math-18+3', 'What is 18 + 3?', 'math', '', '', [['21', 1, 'right'], ['11', 0, 'misconception']],
     {'0': ['right', 12.06, 1, 1, [[2.21, 0.99, '', None], [-9.85, 1.0, '', None]]]}]

An item is [id, prompt, category, subset, remark, responses, results]; a response [text, right or null, remark]; the
result of a run, under its place in the leaderboard, [verdict, margin, pairs won, pairs, scores]; a score [value, label
mass, remark, evidence]. Runs are joined where id, prompt and responses are the same. Of large runs only some items are
kept, chosen by a hash of their id, so that all runs of a benchmark show the same ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, NamedTuple, cast

from selfjudge.readers import hash_share
from selfjudge.report.bench_runs import Bench, BenchRun
from selfjudge.report.prompts import TEXT_SHOWN, prompt_text, rounded, smallest_hashes
from selfjudge.store import Row

ITEMS_SHOWN = 512
"""Per run at most."""
SUBSET_TAGS = ("subset", "domain", "section", "source", "dataset")
"""The first of these tags that an item has is its subset."""
REMARK_CHARACTERS = 300


class Items(NamedTuple):
    """Of one benchmark: what is shown, and how many items all its runs have."""

    shown: list[list[Any]]
    total: int


def item_table(bench: Bench, most: int = ITEMS_SHOWN, characters: int = TEXT_SHOWN) -> dict[str, Any]:
    """What to embed: the runs in the order of the leaderboard, and the items."""
    runs, places = bench.runs, _places(bench)
    share = characters // max(len(places), 1)  # each benchmark gets the same part of the text
    found = {name: _items(runs, own, most, share) for name, own in places.items()}
    return {
        "runs": [[run.name, run.unit] for run in runs],
        "benchmarks": [[name, own] for name, own in places.items()],
        "items": [item for items in found.values() for item in items.shown],
        "total": sum(items.total for items in found.values()),
    }


def _places(bench: Bench) -> dict[str, list[int]]:
    """Where the runs of each benchmark stand in the leaderboard."""
    names = [group.benchmark for group in bench.groups for _ in group.runs]
    return {name: [place for place, other in enumerate(names) if other == name] for name in names}


def _items(runs: list[BenchRun], places: list[int], most: int, characters: int) -> Items:
    """The items of the runs at these places, in the order of their hashes."""
    found: dict[str, list[Any]] = {}
    least, total = 1.0, 0
    for place in places:
        rows, count = smallest_hashes(runs[place].rows.rows(), most)
        total = max(total, count)
        if len(rows) < count and rows:
            least = min(least, hash_share(rows[-1]["id"]))
        for row in rows:
            found.setdefault(_content(row), _item(row))[-1][str(place)] = _result(row)
    shown = sorted(
        (item for item in found.values() if hash_share(item[0]) <= least), key=lambda one: hash_share(one[0])
    )
    return Items(_within(shown, characters), max(total, len(found)))


def _within(items: list[list[Any]], characters: int) -> list[list[Any]]:
    """As many of the first as fit, at least one."""
    size = 0
    for place, item in enumerate(items):
        size += len(json.dumps(item, ensure_ascii=False))
        if size > characters:
            return items[: max(place, 1)]
    return items


def _content(row: Row) -> str:
    """The same for the same item: runs are compared on it only if they saw the same prompt and responses."""
    texts = [row["id"], prompt_text(row["messages"]), *(response["text"] for response in row.get("responses", []))]
    return blake2b("\x1f".join(texts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _item(row: Row) -> list[Any]:
    tags = cast(dict[str, Any], row.get("tags", {}))
    subset = next((str(tags[name]) for name in SUBSET_TAGS if tags.get(name)), "")
    given = "" if row.get("reference") is None else f"reference answer: {row['reference']}"
    lone = [f"{name}: {value}" for name, value in tags.items() if isinstance(value, str | int | float)]
    remark = "; ".join(filter(None, [given, *lone]))[:REMARK_CHARACTERS]
    return [row["id"], prompt_text(row["messages"]), row.get("category"), subset, remark, _responses(row, tags), {}]


def _responses(row: Row, tags: dict[str, Any]) -> list[list[Any]]:
    """With what the tags say of each single response, such as its style."""
    texts = [response["text"] for response in row.get("responses", [])]
    gold = row.get("gold")
    each = [value for value in tags.values() if isinstance(value, list) and len(cast(list[Any], value)) == len(texts)]
    remarks = [", ".join(str(value[index]) for value in each) for index in range(len(texts))]
    return [[text, None if gold is None else int(i in gold), remarks[i]] for i, text in enumerate(texts)]


def _result(row: Row) -> list[Any]:
    scores = cast(list[Row], row.get("scores", []))
    values = [score["value"] for score in scores]
    return [*verdict(values, row.get("gold")), [_score(score) for score in scores]]


def verdict(values: list[float | None], gold: Iterable[int] | None) -> tuple[str, float | None, int, int]:
    """(verdict, margin, pairs won, pairs): `right` when every right response outscores every wrong one.

    The margin is the lowest right score minus the highest wrong one. `tie`: no pair is lost, but one is even;
    `missing`: a score is not there; `unknown`: it is not known which responses are right.
    """
    right_places = set(gold or ())
    right = [value for place, value in enumerate(values) if place in right_places]
    wrong = [value for place, value in enumerate(values) if place not in right_places]
    pairs = len(right) * len(wrong)
    if not pairs:
        return "unknown", None, 0, 0
    won = sum(a > b for a in right for b in wrong if a is not None and b is not None)
    if None in values:
        return "missing", None, won, pairs
    margin = min(cast(list[float], right)) - max(cast(list[float], wrong))
    return "right" if margin > 0 else "tie" if margin == 0 else "wrong", rounded(margin), won, pairs


def _score(score: Row) -> list[Any]:
    remark = str(score.get("reason") or ("middle cut to fit the context" if score.get("truncated") else ""))
    evidence = _shortened(score["evidence"]) if score.get("evidence") else None
    return [rounded(score["value"]), rounded(score.get("label_mass")), remark, evidence]


def _shortened(value: Any) -> Any:
    """The same with its numbers rounded, for reading."""
    if isinstance(value, float):
        return rounded(value)
    if isinstance(value, dict):
        return {str(key): _shortened(one) for key, one in cast(dict[Any, Any], value).items()}
    return [_shortened(one) for one in cast(list[Any], value)] if isinstance(value, list) else value
