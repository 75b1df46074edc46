"""Prompts -> K responses each, with their token ids and log-probabilities; in place, with the model's judgement too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from selfjudge.backends import SampleRequest, SampleResult, Sampling
from selfjudge.categories import classify
from selfjudge.config import SampleConfig
from selfjudge.console import Console
from selfjudge.inputs import entry, read_prompts
from selfjudge.judges.yes_no import follow_up, score_of
from selfjudge.questions import load_questions
from selfjudge.records import Example
from selfjudge.steps import OpenModel, Summary, all_rows, step_meta
from selfjudge.steps.judge import compare_separate
from selfjudge.store import Row, open_output

COMPUTED_AGAIN = (
    "sample: the cache of this model (a sliding window or a state) cannot be continued row by row; the responses to {} "
    "prompts were computed once more to be judged"
)


def run(config: SampleConfig, console: Console, model: OpenModel | None = None) -> Summary:
    """Samples every prompt that has no row yet; returns the summary of all rows."""
    examples = read_prompts(config.prompts, config.limit)
    with open_output(config.out, step_meta("sample", config, prompts=entry(config.prompts, examples))) as output:
        if output.finished:
            return output.summary
        written: list[Row] = []
        with OpenModel() as own:
            opened = model or own
            backend = opened.get(config)
            if config.in_place:
                examples = classify(backend, examples)
            by_id = {example.id: example for example in examples}
            requests = _requests(config, examples)
            again = 0
            drawn = backend.generate(requests, sampling(config, config.num_responses), frozenset(output.done_ids))
            with console.progress("sample", len(examples), len(output.done_ids), "prompt") as bar:
                for results in drawn:
                    rows = [_row(by_id[r.key], r) for r in results if r.key not in output.done_ids]
                    output.append(rows)
                    again += sum(not result.from_cache for result in results)
                    written += rows if output.path is None else []
                    bar.update(len(rows))
            summary = summarise(all_rows(output, written))
            if config.in_place:
                summary |= compare_separate(config, opened, examples, all_rows(output, written))
        output.finish(summary)
        if again:
            console.say(COMPUTED_AGAIN.format(again))
        return output.summary


def sampling(config: Any, num_responses: int) -> Sampling:
    """The draw's settings from a config with the draw options."""
    names = [name for name in Sampling.__dataclass_fields__ if name != "num_responses"]
    return Sampling(num_responses=num_responses, **{name: getattr(config, name) for name in names})


def _row(example: Example, result: SampleResult) -> Row:
    scores = tuple(score_of(answer) for answer in result.answers)
    return replace(example, prompt_ids=result.prompt_ids, responses=result.responses, scores=scores).to_json()


def _requests(config: SampleConfig, examples: Sequence[Example]) -> list[SampleRequest]:
    """Prompts, with the judge's question behind their responses where they are judged in place."""
    if not config.in_place:
        return [SampleRequest(example.id, example.messages) for example in examples]
    questions = load_questions(config.questions)
    return [SampleRequest(example.id, example.messages, follow_up(questions, example)) for example in examples]


def summarise(rows: Iterable[Row]) -> Summary:
    """Counts of prompts and responses, mean length in tokens, shares unfinished and repeated."""
    prompts = responses = tokens = unfinished = distinct = 0
    for row in rows:
        prompts += 1
        responses += len(row["responses"])
        tokens += sum(len(response["token_ids"]) for response in row["responses"])
        unfinished += sum(not response.get("finished", True) for response in row["responses"])
        distinct += len({response["text"] for response in row["responses"]})
    return {
        "prompts": prompts,
        "responses": responses,
        "mean_tokens": tokens / max(responses, 1),
        "unfinished_share": unfinished / max(responses, 1),
        "distinct_share": distinct / max(responses, 1),
    }
