"""RewardBench: pairs in 23 subsets and four sections (Lambert et al., arXiv 2403.13787), by two protocols.

    selfjudge bench --model M --judge yes-no --benchmark rewardbench --data reward-bench --out runs/rewardbench

`rewardbench` is the official one: split `filtered`, a tie counts half. A section is the mean of its subsets' accuracies
weighted by their official rows, math-prm as 984 (so that mathematics counts as much as all code); overall is the plain
mean of the four. A section is complete, and overall is given, only where every subset has its official rows.

`rewardbench-paper` is that of Garg et al. (arXiv 2502.16182), for comparing with their tables only: split `raw`, four
categories of pooled rows, ties and missing scores lost.

A subset with another name is refused, since it may be a slip of the pen; but `NAME-anything`, where NAME is an official
subset, is a variant of it and reported among `other_subsets`, outside the sections. No row is left out of the figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

import numpy as np

from selfjudge import stats
from selfjudge.benchmarks.estimates import Estimate, estimate, known, strict_share, weighted_mean
from selfjudge.benchmarks.reading import check_counts, needed_text, read_benchmark
from selfjudge.benchmarks.sources import PlacedRow
from selfjudge.forms import RowError
from selfjudge.records import Example

HUB = "allenai/reward-bench"
Credits = dict[str, list[float]]
"""Subset -> per pair 1 where right, 0.5 where tied, 0 where wrong, NaN where missing."""

HEP = tuple(f"hep-{language}" for language in ("cpp", "go", "java", "js", "python", "rust"))
SECTIONS: dict[str, dict[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {"math-prm": 447, **dict.fromkeys(HEP, 164)},
}
"""Section -> its subsets and their rows in the split `filtered`."""
ROWS = {name: rows for subsets in SECTIONS.values() for name, rows in subsets.items()}
WEIGHTS = {**ROWS, "math-prm": 984}

PAPER_CATEGORIES = {
    "chat": (*SECTIONS["Chat"], *SECTIONS["Chat Hard"]),
    "safety": tuple(SECTIONS["Safety"]),
    "code": HEP,
    "math": ("math-prm",),
}
PAPER_ROWS = 5123
PAPER_NOTE = "split raw, ties and missing scores lost: comparable with the tables of arXiv 2502.16182 only"


def read(source: str) -> Iterator[Example]:
    """The rows of the split `filtered`, or of files that name no split."""
    return read_benchmark(source, "filtered", _complete)


def read_raw(source: str) -> Iterator[Example]:
    """The rows of the split `raw`, or of files that name no split."""
    return read_benchmark(source, "raw", _complete)


def _complete(placed: PlacedRow, example: Example) -> Example:
    subset = needed_text(placed.row, "subset")
    check_counts(example, 1, 1)
    if subset in ROWS:
        section = next(name for name, subsets in SECTIONS.items() if subset in subsets)
        return replace(example, tags=example.tags | {"subset": subset, "section": section})
    if not any(subset.startswith(f"{name}-") for name in ROWS):
        near = get_close_matches(subset, ROWS, 1, cutoff=0)
        raise RowError(f"unknown subset {subset!r}; the nearest is {near[0]!r} (a variant is called {near[0]}-...)")
    return replace(example, tags=example.tags | {"subset": subset})


def _credits_of(judged: Iterable[Example]) -> Credits:
    found: Credits = {}
    for example in judged:
        right, wrong = (score.value for score in example.scores)
        found.setdefault(example.tags["subset"], []).append(float(stats.credit(right - wrong)))
    return found


def _estimate(credits: Credits, subset: str) -> Estimate:
    return estimate(np.asarray(credits[subset])[:, None], subset)


def _in_order(credits: Credits) -> list[str]:
    return [name for name in ROWS if name in credits]


def _other_subsets(credits: Credits) -> dict[str, Any]:
    names = sorted(set(credits) - set(ROWS))
    figures = {name: _estimate(credits, name).figure(**_beside(credits[name])) for name in names}
    return {"other_subsets": figures} if names else {}


def _beside(credits: list[float]) -> dict[str, Any]:
    values = np.asarray(credits)
    counts = {"ties": int((values == 0.5).sum()), "missing": int(np.isnan(values).sum())}
    return {"strict": strict_share(values)} | counts


# The official protocol


def summarise(judged: Iterable[Example]) -> dict[str, Any]:
    """Overall, sections and subsets; whatever is missing or short of rows is named."""
    credits = _credits_of(judged)
    parts = {name: _estimate(credits, name) for name in _in_order(credits)}
    sections = {name: _section(subsets, parts) for name, subsets in SECTIONS.items()}
    complete = all(_is_complete(name, credits) for name in ROWS)
    overall = weighted_mean([part for part in sections.values() if part]) if complete else None
    return {
        "overall": overall.figure() if overall else None,
        "sections": {name: _section_figures(name, part, credits) for name, part in sections.items()},
        "subsets": {name: part.figure(**_beside(credits[name])) for name, part in parts.items()},
        "missing_subsets": [name for name in ROWS if name not in credits],
        "incomplete_subsets": _incomplete(credits),
        **_other_subsets(credits),
    }


def _section(subsets: Iterable[str], parts: Mapping[str, Estimate]) -> Estimate | None:
    """The weighted mean over the subsets that are there, None where there is none."""
    present = [name for name in subsets if name in parts]
    if not present:
        return None
    return weighted_mean([parts[name] for name in present], [WEIGHTS[name] for name in present])


def _section_figures(name: str, part: Estimate | None, credits: Credits) -> dict[str, Any]:
    subsets = SECTIONS[name]
    present = [subset for subset in subsets if subset in credits]
    figures: dict[str, Any] = {"accuracy": None}
    if part:
        strict = [strict_share(credits[subset]) or 0.0 for subset in present]
        share = float(np.average(strict, weights=[WEIGHTS[subset] for subset in present]))
        figures["accuracy"] = part.figure(strict=share)
    complete = all(_is_complete(subset, credits) for subset in subsets)
    rows = f"{sum(len(credits[subset]) for subset in present)} of {sum(ROWS[subset] for subset in subsets)}"
    return figures | {"complete": complete, "subsets": f"{len(present)} of {len(subsets)}", "rows": rows}


def _is_complete(subset: str, credits: Credits) -> bool:
    return len(credits.get(subset, ())) == ROWS[subset]


def _incomplete(credits: Credits) -> dict[str, str]:
    """Subsets that are there with another number of rows than the official ones."""
    names = [name for name in _in_order(credits) if not _is_complete(name, credits)]
    return {name: f"{len(credits[name])} of {ROWS[name]} rows" for name in names}


# The paper's protocol


def summarise_paper(judged: Iterable[Example]) -> dict[str, Any]:
    """Four categories and their mean, strict; overall only where every subset is there."""
    credits = _credits_of(judged)
    parts = {name: _pooled(name, subsets, credits) for name, subsets in PAPER_CATEGORIES.items()}
    missing = [name for name in ROWS if name not in credits]
    found = sum(len(credits[name]) for name in _in_order(credits))
    return {
        "comparable_with_leaderboard": False,
        "note": PAPER_NOTE,
        "overall": None if missing else weighted_mean(list(parts.values())).figure(),
        "categories": {name: part.figure() if part.n else None for name, part in parts.items()},
        "subsets": {name: known(strict_share(credits[name]) or 0.0) for name in _in_order(credits)},
        "complete": found == PAPER_ROWS and not missing,
        "rows": f"{found} of {PAPER_ROWS}",
        "missing_subsets": missing,
        **_other_subsets(credits),
    }


def _pooled(name: str, subsets: tuple[str, ...], credits: Credits) -> Estimate:
    """All rows of the subsets together: 1 where the right response scores higher, else 0."""
    values = np.asarray([credit for subset in subsets for credit in credits.get(subset, ())])
    return estimate((values == 1).astype(float)[:, None], name)
