"""Ranked responses, or right and wrong ones -> a file of pairs that another training program reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from selfjudge.config import ExportConfig
from selfjudge.console import Console
from selfjudge.errors import DataError
from selfjudge.inputs import Source, read_scorable
from selfjudge.pair_files import summary_of_finished, write_whole
from selfjudge.pair_formats import PAIR_FORMATS, Pair, pairs_of
from selfjudge.records import Example
from selfjudge.steps import Summary, step_meta
from selfjudge.values import Row, RowError


def run(config: ExportConfig, console: Console) -> Summary:
    """Writes one row a pair; rows that give none are counted by reason in the summary."""
    out = Path(config.out)
    with read_scorable(config.input, ("responses",)) as examples:
        meta = step_meta("export", config, input=examples.entry)
        found = summary_of_finished(out, meta)
        if found is not None:
            return found
        counted = _Counted()
        write_whole(out, meta, _rows(examples, config, counted), counted.summary)
    console.say(f"export: {counted.pairs} pairs from {counted.prompts} of {len(examples)} prompts")
    return counted.summary()


@dataclass
class _Counted:
    """Prompts that gave pairs, pairs, and what the others lacked."""

    prompts: int = 0
    pairs: int = 0
    dropped: Counter[str] = field(default_factory=Counter[str])

    def summary(self) -> Summary:
        return {"prompts": self.prompts, "pairs": self.pairs, "dropped": dict(self.dropped.most_common())}


def _rows(examples: Source, config: ExportConfig, counted: _Counted) -> Iterator[Row]:
    for example in examples:
        try:
            rows = [PAIR_FORMATS[config.format](pair) for pair in _usable(example, counted)]
        except RowError as error:
            raise DataError.at(config.input, None, str(error)) from None
        counted.prompts += bool(rows)
        counted.pairs += len(rows)
        yield from rows
    if not counted.pairs:
        reasons = ", ".join(f"{count} with {reason}" for reason, count in counted.dropped.items())
        raise DataError.at(config.input, None, f"no pair to write: {reasons}")


def _usable(example: Example, counted: _Counted) -> list[Pair]:
    """The pairs whose responses differ: nothing can be learned from the same text twice."""
    pairs = list(pairs_of(example))
    kept = [pair for pair in pairs if pair.chosen != pair.rejected]
    if not kept:
        counted.dropped["the same text twice" if pairs else "no response better than another"] += 1
    return kept
