"""Scored rows -> the same rows, their scores computed again from the evidence that was kept: no model is asked.

    selfjudge rescore --input scored.jsonl --out again.jsonl

For a parser that has learnt to read more, or to check how a score came about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from selfjudge.config import RescoreConfig
from selfjudge.console import Console
from selfjudge.errors import ConfigError, DataError
from selfjudge.inputs import read_scorable
from selfjudge.judges import JUDGES
from selfjudge.records import Example
from selfjudge.steps import Summary, step_meta
from selfjudge.steps.judge import judge_rows
from selfjudge.store import open_output, read_meta


def run(config: RescoreConfig, console: Console) -> Summary:
    """Scores every row that is not in the output yet; returns the summary of all rows, as `judge` does."""
    name = _judge_of(config.input) if config.judge == "recorded" else config.judge
    rescore = JUDGES[name].rescore
    if rescore is None:
        raise ConfigError(f"{config.input}: the {name} judge keeps no evidence to score from; judge the rows again")
    with read_scorable(config.input, ("responses", "scores")) as examples:
        meta = step_meta("rescore", config.model_copy(update={"judge": name}), input=examples.entry)
        with open_output(config.out, meta) as output:
            if not output.finished:
                output.finish(judge_rows(examples, _of_each(rescore, config.input), output, console).summary())
            return output.summary


def _judge_of(source: str) -> str:
    """The judge that the meta file beside the rows names."""
    meta = None if source == "-" else read_meta(source)
    name = (meta or {}).get("config", {}).get("judge")
    if name not in JUDGES:
        raise ConfigError(
            f"--judge recorded: nothing beside {source} says which judge scored it; give --judge its name"
        )
    return name


def _of_each(rescore: Callable[[Example], Example], source: str) -> Callable[[Sequence[Example]], list[Example]]:
    def judge(examples: Sequence[Example]) -> list[Example]:
        for example in examples:
            if example.strengths:
                raise DataError(
                    f"{source}: row {example.id} is a selection of responses; give the rows it was made from"
                )
        return [rescore(example) for example in examples]

    return judge
