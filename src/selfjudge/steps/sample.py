"""Prompts -> K responses each, with their token ids and the sampler's own log-probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from selfjudge.backends import Backend, SampleRequest, SampleResult, Sampling
from selfjudge.config import SampleConfig
from selfjudge.console import Console
from selfjudge.inputs import Source, read_prompts
from selfjudge.records import Example
from selfjudge.steps import OpenModel, Summary, earlier_rows, step_meta
from selfjudge.store import StepOutput, open_output


def run(config: SampleConfig, console: Console, model: OpenModel | None = None) -> Summary:
    """Samples every prompt that has no row yet; returns the summary of all rows."""
    with (
        read_prompts(config.prompts, config.limit) as prompts,
        open_output(config.out, step_meta("sample", config, prompts=prompts.entry)) as output,
        OpenModel(console.say) as own,
    ):
        if not output.finished:
            figures = _sample(config, prompts, output, (model or own).get(config), console)
            output.finish(figures.summary())
        return output.summary


def _sample(
    config: SampleConfig, prompts: Source, output: StepOutput, backend: Backend, console: Console
) -> SampleFigures:
    figures = SampleFigures()
    for row in earlier_rows(output):
        figures.add(Example.from_json(row))
    waiting = ReadAhead(prompt for prompt in prompts if prompt.id not in output.done_ids)
    drawn = backend.generate(Requests(prompts), sampling(config, config.num_responses), output.done_ids)
    with console.progress("sample", len(prompts), len(output.done_ids), "prompt") as bar:
        for results in drawn:
            new = [_sampled(waiting.take(r.key), r) for r in results if r.key not in output.done_ids]
            output.append(example.to_json() for example in new)
            for example in new:
                figures.add(example)
            bar.update(len(new))
    return figures


class Requests:
    """Prompts as requests, made anew each time they are gone through."""

    def __init__(self, prompts: Iterable[Example]) -> None:
        self.prompts = prompts

    def __iter__(self) -> Iterator[SampleRequest]:
        return (SampleRequest(prompt.id, prompt.messages) for prompt in self.prompts)


class ReadAhead:
    """Examples by id, for results that come in another order than their prompts.

    Holds those between the first one that has not been taken and the last one that has: what a backend works on.
    """

    def __init__(self, examples: Iterable[Example]) -> None:
        self._rest = iter(examples)
        self._waiting: dict[str, Example] = {}

    def take(self, key: str) -> Example:
        """The example with this id, once."""
        while key not in self._waiting:
            example = next(self._rest)
            self._waiting[example.id] = example
        return self._waiting.pop(key)


def sampling(config: Any, num_responses: int) -> Sampling:
    """The draw's settings from a config with the draw options."""
    names = [name for name in Sampling.__dataclass_fields__ if name != "num_responses"]
    return Sampling(num_responses=num_responses, **{name: getattr(config, name) for name in names})


def _sampled(prompt: Example, result: SampleResult) -> Example:
    return replace(prompt, prompt_ids=result.prompt_ids, responses=result.responses)


@dataclass
class SampleFigures:
    """Counts of prompts and responses, mean length in tokens, shares unfinished and distinct."""

    prompts: int = 0
    responses: int = 0
    tokens: int = 0
    unfinished: int = 0
    distinct: int = 0

    def add(self, example: Example) -> None:
        """One prompt with its responses."""
        self.prompts += 1
        self.responses += len(example.responses)
        self.tokens += sum(len(response.token_ids or ()) for response in example.responses)
        self.unfinished += sum(not response.finished for response in example.responses)
        self.distinct += len({response.text for response in example.responses})

    def summary(self) -> Summary:
        """All that was added."""
        return {
            "prompts": self.prompts,
            "responses": self.responses,
            "mean_tokens": self.tokens / max(self.responses, 1),
            "unfinished_share": self.unfinished / max(self.responses, 1),
            "distinct_share": self.distinct / max(self.responses, 1),
        }
