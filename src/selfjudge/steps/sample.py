"""Prompts -> K responses each, with their token ids and log-probabilities; in place, with the model's judgement too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from selfjudge.backends import Backend, SampleRequest, SampleResult, Sampling
from selfjudge.categories import WithCategories
from selfjudge.config import SampleConfig
from selfjudge.console import Console
from selfjudge.inputs import Source, read_prompts
from selfjudge.judges.yes_no import follow_up, score_of
from selfjudge.measures import Measure
from selfjudge.questions import Questions, load_questions
from selfjudge.records import Example
from selfjudge.steps import OpenModel, Summary, earlier_rows, step_meta
from selfjudge.steps.judge import SeparateComparison
from selfjudge.store import StepOutput, open_output

COMPUTED_AGAIN = (
    "sample: the cache of this model (a sliding window or a state) cannot be continued row by row; the responses to {} "
    "prompts were computed once more to be judged"
)


def run(config: SampleConfig, console: Console, model: OpenModel | None = None) -> Summary:
    """Samples every prompt that has no row yet; returns the summary of all rows."""
    with (
        read_prompts(config.prompts, config.limit) as prompts,
        open_output(config.out, step_meta("sample", config, prompts=prompts.entry)) as output,
        OpenModel(console.say) as own,
    ):
        if not output.finished:
            opened = model or own
            comparison = SeparateComparison(prompts, config.compare_separate if config.in_place else 0)
            backend = opened.get(config)
            opened.estimate(lambda: _rehearse(config, prompts, output, opened))
            figures = _sample(config, prompts, output, backend, console, comparison)
            output.finish(figures.summary() | comparison.summary(config, opened))
        return output.summary


def _rehearse(config: SampleConfig, prompts: Source, output: StepOutput, model: OpenModel) -> None:
    """Samples without writing anything, for an estimate of the requests."""
    comparison = SeparateComparison(prompts, config.compare_separate if config.in_place else 0)
    for examples, _ in _drawn(config, prompts, output, model.get(config)):
        for example in examples:
            comparison.seen(example)
    comparison.summary(config, model)


def _sample(
    config: SampleConfig,
    prompts: Source,
    output: StepOutput,
    backend: Backend,
    console: Console,
    comparison: SeparateComparison,
) -> SampleFigures:
    figures, computed_again = SampleFigures(), 0
    for row in earlier_rows(output):
        figures.add(comparison.seen(Example.from_json(row)))
    with console.progress("sample", len(prompts), len(output.done_ids), "prompt") as bar:
        for new, again in _drawn(config, prompts, output, backend):
            output.append(example.to_json() for example in new)
            for example in new:
                figures.add(comparison.seen(example))
            computed_again += again
            bar.update(len(new))
    if computed_again:
        console.say(COMPUTED_AGAIN.format(computed_again))
    return figures


def _questions(config: SampleConfig) -> Questions:
    return load_questions(config.questions, config.wording, config.ablation)


def _drawn(
    config: SampleConfig, prompts: Source, output: StepOutput, backend: Backend
) -> Iterator[tuple[list[Example], int]]:
    """New examples batch by batch, and how many prompts were computed a second time to be judged."""
    known = WithCategories(backend, prompts) if config.in_place else prompts
    requests = Requests(known, _questions(config) if config.in_place else None)
    waiting = ReadAhead(prompt for prompt in known if prompt.id not in output.done_ids)
    for results in backend.generate(requests, sampling(config, config.num_responses), output.done_ids):
        new = [_sampled(waiting.take(r.key), r) for r in results if r.key not in output.done_ids]
        yield new, sum(not result.from_cache for result in results)


class Requests:
    """Prompts as requests, made anew whenever they are gone through; with a question behind each response."""

    def __init__(self, prompts: Iterable[Example], in_place: Questions | None) -> None:
        self.prompts = prompts
        self.in_place = in_place

    def __iter__(self) -> Iterator[SampleRequest]:
        return map(self._request, self.prompts)

    def _request(self, prompt: Example) -> SampleRequest:
        question = None if self.in_place is None else follow_up(self.in_place, prompt)
        return SampleRequest(prompt.id, prompt.messages, question)


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
    scores = tuple(score_of(answer) for answer in result.answers)
    return replace(prompt, prompt_ids=result.prompt_ids or None, responses=result.responses, scores=scores)


@dataclass
class SampleFigures:
    """Counts of prompts and responses, mean length in tokens (where it is known), shares unfinished and distinct."""

    prompts: int = 0
    responses: int = 0
    tokens: Measure = field(default_factory=Measure)
    unfinished: int = 0
    distinct: int = 0

    def add(self, example: Example) -> None:
        """One prompt with its responses."""
        self.prompts += 1
        self.responses += len(example.responses)
        self.tokens.add(len(response.token_ids) for response in example.responses if response.token_ids is not None)
        self.unfinished += sum(not response.finished for response in example.responses)
        self.distinct += len({response.text for response in example.responses})

    def summary(self) -> Summary:
        """All that was added."""
        return {
            "prompts": self.prompts,
            "responses": self.responses,
            "mean_tokens": self.tokens.mean,
            "unfinished_share": self.unfinished / max(self.responses, 1),
            "distinct_share": self.distinct / max(self.responses, 1),
        }
