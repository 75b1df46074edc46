"""Scored responses -> what to train on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from selfjudge.config import SelectConfig
from selfjudge.console import Console
from selfjudge.inputs import entry, read_scorable
from selfjudge.measures import Measure
from selfjudge.records import Example
from selfjudge.selection import Dropped, Selected, SelectionRule, select
from selfjudge.steps import Summary, all_rows, step_meta
from selfjudge.store import Row, open_output


def run(config: SelectConfig, console: Console) -> Summary:
    """Selects from every row; rows that give no pair are counted by reason in the summary."""
    examples = read_scorable(config.input, ("responses", "scores"))
    with open_output(config.out, step_meta("select", config, input=entry(config.input, examples))) as output:
        if output.finished:
            return output.summary
        choices = [select(example, rule(config)) for example in examples]
        kept = [choice.example.to_json() for choice in choices if isinstance(choice, Selected)]
        rows = [row for row in kept if row["id"] not in output.done_ids]
        output.append(rows)
        dropped = Counter(choice.reason for choice in choices if isinstance(choice, Dropped))
        output.finish(summarise(all_rows(output, rows)) | {"dropped": dict(dropped.most_common())})
        console.say(f"select: {len(kept)} of {len(examples)} prompts give pairs")
        return output.summary


def rule(config: Any) -> SelectionRule:
    """The selection rule from a config with the select options."""
    return SelectionRule(
        method=config.select,
        temperature=config.score_temperature,
        min_margin=config.min_margin,
        agreement=config.agreement,
        keep_unfinished=config.keep_unfinished,
    )


def summarise(rows: Iterable[Row]) -> Summary:
    """Prompts kept, mean target of best against worst, mean lengths; how often the best is right, where known."""
    margin, best, worst, right, pairs = Measure(), Measure(), Measure(), Measure(), 0
    for row in rows:
        example = Example.from_json(row)
        pairs += len(example.responses) * (len(example.responses) - 1) // 2
        margin.add([example.strengths[0] - example.strengths[-1]])
        best.add([_length(example, 0)])
        worst.add([_length(example, -1)])
        if example.reference is not None:
            right.add([float(example.responses[0].text.strip() == example.reference.strip())])
    return {
        "prompts": margin.count,
        "pairs": pairs,
        "mean_margin": margin.mean,
        "mean_tokens_best": best.mean,
        "mean_tokens_worst": worst.mean,
        "best_right_share": right.mean,
    }


def _length(example: Example, index: int) -> float:
    response = example.responses[index]
    return float(len(response.token_ids)) if response.token_ids else float("nan")
