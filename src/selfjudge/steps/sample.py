"""Prompts -> K responses each, with their token ids and the sampler's own log-probabilities."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from selfjudge.backends import SampleRequest, SampleResult, Sampling
from selfjudge.config import SampleConfig
from selfjudge.console import Console
from selfjudge.inputs import entry, read_prompts
from selfjudge.records import Example
from selfjudge.steps import OpenModel, Summary, all_rows, step_meta
from selfjudge.store import Row, open_output


def run(config: SampleConfig, console: Console, model: OpenModel | None = None) -> Summary:
    """Samples every prompt that has no row yet; returns the summary of all rows."""
    examples = read_prompts(config.prompts, config.limit)
    with open_output(config.out, step_meta("sample", config, prompts=entry(config.prompts, examples))) as output:
        if output.finished:
            return output.summary
        written: list[Row] = []
        with OpenModel(console.say) as own:
            backend = (model or own).get(config)
            by_id = {example.id: example for example in examples}
            requests = [SampleRequest(example.id, example.messages) for example in examples]
            drawn = backend.generate(requests, sampling(config, config.num_responses), frozenset(output.done_ids))
            with console.progress("sample", len(examples), len(output.done_ids), "prompt") as bar:
                for results in drawn:
                    rows = [_row(by_id[r.key], r) for r in results if r.key not in output.done_ids]
                    output.append(rows)
                    written += rows if output.path is None else []
                    bar.update(len(rows))
        output.finish(summarise(all_rows(output, written)))
        return output.summary


def sampling(config: Any, num_responses: int) -> Sampling:
    """The draw's settings from a config with the draw options."""
    names = [name for name in Sampling.__dataclass_fields__ if name != "num_responses"]
    return Sampling(num_responses=num_responses, **{name: getattr(config, name) for name in names})


def _row(example: Example, result: SampleResult) -> Row:
    return replace(example, prompt_ids=result.prompt_ids, responses=result.responses).to_json()


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
