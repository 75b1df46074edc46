"""A judge on a benchmark: every row judged once, then every figure from the rows on disk.

    selfjudge bench --model path/to/model --judge yes-no --benchmark pairs.jsonl --out runs/bench/mine

The folder gets `rows.jsonl` (each row with its responses, scores and evidence) and `results.json` (what was measured
on what, and all figures).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from heapq import nsmallest
from itertools import islice
from pathlib import Path

from selfjudge.benchmarks import BENCHMARKS, Benchmark
from selfjudge.categories import check_routing
from selfjudge.config import BenchConfig
from selfjudge.console import Console
from selfjudge.inputs import WORLD, Source, read_scorable, survey
from selfjudge.judges import JUDGES
from selfjudge.readers import hash_share
from selfjudge.records import Example
from selfjudge.steps import OpenModel, Summary, step_meta, versions
from selfjudge.steps.judge import judge_rows, judging_models, make_judge
from selfjudge.store import open_output, read_rows, write_json_atomic

ROWS = "rows.jsonl"
RESULTS = "results.json"


def run(config: BenchConfig, console: Console) -> Summary:
    """Judges every row that is not judged yet; returns the figures of all."""
    folder = Path(config.out)
    benchmark = BENCHMARKS.get(config.benchmark, BENCHMARKS["pairs"])
    with _rows_of(config, benchmark) as examples:
        meta = step_meta("bench", config, benchmark=examples.entry)
        with open_output(folder / ROWS, meta) as output:
            if not output.finished:
                with OpenModel(console.say) as model:
                    judge = make_judge(config, model, config.judge, config.seed)
                    figures = judge_rows(examples, judge, output, console)
                    routing = _routing(config, examples, model)
                output.finish(figures.summary() | routing)
            summary = output.summary | benchmark.summarise(Judged(folder / ROWS))
    results = {"config": config.model_dump(), "unit": JUDGES[config.judge].unit, "judged_by": _judged_by(config)}
    write_json_atomic(folder / RESULTS, results | {"figures": summary, "versions": versions()})
    return summary


def _routing(config: BenchConfig, examples: Source, model: OpenModel) -> Summary:
    """How well the judging model finds the categories that the first rows state; nothing where none does."""
    if JUDGES[config.judge].asks != "language model":
        return {}
    stated = list(islice((example for example in examples if example.category), config.check_routing))
    return {"routing": check_routing(model.get_all(config, judging_models(config))[0], stated)} if stated else {}


def _judged_by(config: BenchConfig) -> list[str]:
    return [] if JUDGES[config.judge].asks == "nobody" else judging_models(config)


class Judged:
    """The judged rows of a file, read anew whenever they are gone through."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[Example]:
        return map(Example.from_json, read_rows(self.path))


@contextmanager
def _rows_of(config: BenchConfig, benchmark: Benchmark) -> Generator[Source]:
    """The benchmark's rows: of a registered one, of the built-in world, or of a file of pairs."""
    if config.benchmark in WORLD:
        with read_scorable(config.benchmark, ("responses", "gold")) as examples:
            yield some(examples, config.limit)
        return
    source = config.data or benchmark.hub or config.benchmark
    yield some(survey(source, lambda: benchmark.read(source)), config.limit)


def some(examples: Source, count: int) -> Source:
    """`count` of the examples (0: all), those whose ids have the smallest hashes: a fair part of a sorted file."""
    if not 0 < count < len(examples):
        return examples
    last = nsmallest(count, (hash_share(example.id) for example in examples))[-1]
    return examples.part(lambda example: hash_share(example.id) <= last)
