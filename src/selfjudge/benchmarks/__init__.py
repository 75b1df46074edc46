"""Benchmarks: rows whose right responses are known, and the figures that judged rows give.

    benchmark = BENCHMARKS["rewardbench"]
    examples = benchmark.read("reward-bench/data")        # a file, a folder or a hub name
    figures = benchmark.summarise(judged)

One judging pass serves every figure of a benchmark. What is missing is said to be missing, never filled in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from selfjudge.benchmarks import pairs, rewardbench, rewardbench2, rm_bench
from selfjudge.records import Example

Summary = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """How rows are read and summed up.

    `read(source)` yields Examples with `responses` and `gold`; their ids depend on their content alone, so that the
    order of a file changes nothing. `summarise(judged)` may go through the judged rows several times. `hub` names the
    dataset that is read where no source is given.
    """

    read: Callable[[str], Iterator[Example]]
    summarise: Callable[[Iterable[Example]], Summary]
    hub: str | None = None


BENCHMARKS: dict[str, Benchmark] = {
    "pairs": Benchmark(pairs.read, pairs.summarise),
    "rewardbench": Benchmark(rewardbench.read, rewardbench.summarise, rewardbench.HUB),
    "rewardbench-paper": Benchmark(rewardbench.read_raw, rewardbench.summarise_paper, rewardbench.HUB),
    "rewardbench2": Benchmark(rewardbench2.read, rewardbench2.summarise, rewardbench2.HUB),
    "rm-bench": Benchmark(rm_bench.read, rm_bench.summarise, rm_bench.HUB),
}
"""`pairs`: a user's own rows, right and wrong responses in any of the accepted shapes (`selfjudge.forms`)."""
