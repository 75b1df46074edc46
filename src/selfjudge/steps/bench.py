"""A judge on a benchmark: every row judged once, then every figure from the rows on disk.

    selfjudge bench --model path/to/model --judge yes-no --benchmark pairs.jsonl --out runs/bench/mine

The folder gets `rows.jsonl` (each row with its responses, scores and evidence) and `results.json` (what was measured
on what, and all figures). Neither the order of the benchmark's rows nor a restart changes a figure.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from heapq import nsmallest
from pathlib import Path

from selfjudge.benchmarks import BENCHMARKS, Benchmark
from selfjudge.categories import check_routing
from selfjudge.config import BenchConfig
from selfjudge.console import Console
from selfjudge.inputs import WORLD, Source, read_scorable, survey
from selfjudge.judges import JUDGES
from selfjudge.judging_figures import judging_figures
from selfjudge.records import Example
from selfjudge.steps import OpenModel, Summary, step_meta, versions
from selfjudge.steps.judge import (
    JudgeFigures,
    SeparateComparison,
    judge_rows,
    judging_models,
    make_judge,
    rehearse,
    warn_of_bounds,
)
from selfjudge.store import open_output, parse_row, without_nan, write_json_atomic

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
                    twice = config.compare_separate if config.in_place else 0
                    model.estimate(
                        lambda: (
                            rehearse(config, examples, judge, output.done_ids, twice, model),
                            _routing(config, examples, model),
                        )
                    )
                    comparison = SeparateComparison(examples, twice)
                    figures = judge_rows(examples, judge, output, console, comparison.seen)
                    extra = _routing(config, examples, model) | comparison.summary(config, model)
                warn_of_bounds(figures, console)
                output.finish(figures.summary() | extra)
            judged = Judged(folder / ROWS)
            own = _counts(judged) | judging_figures(judged, JUDGES[config.judge].absolute)
            summary: Summary = without_nan(output.summary | own | benchmark.summarise(judged))
    results = {"config": config.model_dump(), "unit": JUDGES[config.judge].unit, "judged_by": _judged_by(config)}
    write_json_atomic(folder / RESULTS, results | {"figures": summary, "versions": versions()})
    return summary


def _routing(config: BenchConfig, examples: Source, model: OpenModel) -> Summary:
    """How well the judging model finds the categories that some of the rows state; nothing where none does."""
    if JUDGES[config.judge].asks != "language model" or not config.check_routing:
        return {}
    stated = list(some(examples.part(lambda example: example.category is not None), config.check_routing))
    return {"routing": check_routing(model.get_all(config, judging_models(config))[0], stated)} if stated else {}


def _judged_by(config: BenchConfig) -> list[str]:
    return [] if JUDGES[config.judge].asks == "nobody" else judging_models(config)


def _counts(judged: Iterable[Example]) -> Summary:
    figures = JudgeFigures()
    for example in judged:
        figures.add(example)
    return figures.summary()


class Judged:
    """The judged rows of a file, read anew whenever they are gone through; 8 bytes a row stay in memory.

    Their order depends on what they are, not on where they stand in the file: sums and seeded draws come out the same.
    """

    def __init__(self, path: Path) -> None:
        """Goes through the file once."""
        self._path = path
        self._places = array("Q", _places(path))

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Example]:
        with self._path.open("rb") as file:
            for place in self._places:
                file.seek(place)
                yield Example.from_json(parse_row(file.readline(), self._path, None))


def _places(path: Path) -> Iterator[int]:
    """Where in the file each row begins, in the order of their content."""
    found: list[tuple[bytes, str, int]] = []
    place = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            example = Example.from_json(parse_row(line, path, number))
            found.append((content_digest(example), example.id, place))
            place += len(line)
    return (place for _, _, place in sorted(found))


def content_digest(example: Example) -> bytes:
    """16 bytes that depend on what was judged alone: the conversation, the responses and which of them are right."""
    content = [example.messages, [response.text for response in example.responses], example.gold]
    return blake2b(json.dumps(content).encode(), digest_size=16).digest()


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
    """`count` of the examples (0: all), those whose content has the smallest digests: a fair part of a sorted file."""
    if not 0 < count < len(examples):
        return examples
    last = nsmallest(count, (content_digest(example) for example in examples))[-1]
    return examples.part(lambda example: content_digest(example) <= last)
