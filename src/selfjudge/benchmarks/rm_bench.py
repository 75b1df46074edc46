"""RM-Bench: right against wrong in three styles each (Liu et al., arXiv 2410.16184).

    selfjudge bench --model M --judge yes-no --benchmark rm-bench --data RM-Bench/data --out runs/rm-bench

Six scores a prompt give all nine comparisons, a 3x3 matrix: its rows are the styles of the right response, its columns
those of the wrong one (concise, detailed, detailed markdown). Easy is the mean below the diagonal (the right response
is the fancier one), normal the diagonal, hard the mean above it. A domain's accuracy is the mean of these three;
overall is the plain mean of Chat, Code, Math and Safety. The style bias is easy minus hard. A tie counts half, in
`strict` nothing (as on the leaderboard).

The domain is the column `domain`, else the beginning of the file's name (`chat_filtered.json`). Where there is a
`total_dataset` file, it alone is read: the files beside it hold the same rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfjudge import stats
from selfjudge.benchmarks.estimates import Estimate, estimate, known, weighted_mean
from selfjudge.benchmarks.reading import check_counts, read_benchmark
from selfjudge.benchmarks.sources import PlacedRow
from selfjudge.forms import RM_BENCH_STYLES, RowError
from selfjudge.records import Example

HUB = "THU-KEG/RM-Bench"
STYLES = RM_BENCH_STYLES
PARTS = {"chat": "Chat", "code": "Code", "math": "Math", "safety-refuse": "Safety", "safety-response": "Safety"}
"""What the data calls a domain -> the domain of the figures."""
ROWS = {"Chat": 129, "Code": 228, "Math": 529, "Safety": 441}

HARD = np.triu(np.ones((3, 3)), 1) / 3
NORMAL = np.eye(3) / 3
EASY = np.tril(np.ones((3, 3)), -1) / 3
FIGURES = {
    "accuracy": (EASY + NORMAL + HARD) / 3,
    "easy": EASY,
    "normal": NORMAL,
    "hard": HARD,
    "style_bias": EASY - HARD,
}
"""The weights (3, 3) of the matrix that make each figure."""


def read(source: str) -> Iterator[Example]:
    """The rows of a file, or of all files of a folder."""
    return read_benchmark(source, "total_dataset", _complete)


def _complete(placed: PlacedRow, example: Example) -> Example:
    check_counts(example, 3, 3)
    return replace(example, tags=example.tags | {"domain": _domain(placed), "styles": [*STYLES, *STYLES]})


def _domain(placed: PlacedRow) -> str:
    stated = placed.row.get("domain")
    found = Path(placed.file).name.partition(".")[0].partition("_")[0] if stated is None else stated
    if found not in PARTS:
        where = "the column domain" if stated is not None else "the file's name (there is no column domain)"
        raise RowError(f"unknown domain {found!r} in {where}; allowed: {', '.join(PARTS)}")
    return found


def summarise(judged: Iterable[Example]) -> dict[str, Any]:
    """Overall, and every domain with its matrix; domains that are missing or short of prompts are named."""
    credits: dict[str, list[NDArray[np.float64]]] = {}
    for example in judged:
        credits.setdefault(PARTS[example.tags["domain"]], []).append(comparisons(example).ravel())
    present = [name for name in ROWS if name in credits]
    parts = {name: estimate(credits[name], name) for name in present}
    strict = {name: (np.asarray(credits[name]) == 1).mean(axis=0) for name in present}
    missing = [name for name in ROWS if name not in credits]
    short = [name for name in present if len(credits[name]) != ROWS[name]]
    return {
        "overall": None
        if missing
        else _figures(weighted_mean(list(parts.values())), np.mean(list(strict.values()), 0)),
        "domains": {name: _figures(parts[name], strict[name]) | _matrix(parts[name]) for name in present},
        "missing_domains": missing,
        "incomplete_domains": {name: f"{len(credits[name])} of {ROWS[name]} prompts" for name in short},
        "complete": not missing and not short,
    }


def comparisons(example: Example) -> NDArray[np.float64]:
    """(3, 3) credits, chosen by rejected style: 1 where right, 0.5 where tied, 0 where wrong, NaN where missing."""
    scores = np.asarray([score.value for score in example.scores])
    return stats.credit(scores[:3, None] - scores[None, 3:])


def _figures(part: Estimate, strict: NDArray[np.float64]) -> dict[str, Any]:
    """Every figure with its interval over prompts, the strict one beside it."""
    return {
        name: part.combined(weights.ravel()).figure(strict=float(strict @ weights.ravel()))
        for name, weights in FIGURES.items()
    }


def _matrix(part: Estimate) -> dict[str, Any]:
    """Style of the right response -> accuracy against the three styles of the wrong one."""
    rows = part.values.reshape(3, 3).round(4)
    return {"matrix": {style: [known(value) for value in row] for style, row in zip(STYLES, rows, strict=True)}}
