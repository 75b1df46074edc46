"""Scored responses -> what to train on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from selfjudge.config import SelectConfig
from selfjudge.console import Console
from selfjudge.inputs import Source, read_scorable
from selfjudge.measures import Measure
from selfjudge.records import Example
from selfjudge.selection import Dropped, Selected, SelectionRule, answer_counts, select
from selfjudge.steps import Summary, groups_of, step_meta
from selfjudge.store import StepOutput, open_output

SELECTED_TOGETHER = 64  # examples written at a time


def run(config: SelectConfig, console: Console) -> Summary:
    """Selects from every row; rows that give no pair are counted by reason in the summary."""
    with (
        read_scorable(config.input, ("responses", "scores")) as examples,
        open_output(config.out, step_meta("select", config, input=examples.entry)) as output,
    ):
        if not output.finished:
            figures = _select(examples, rule(config), output)
            output.finish(figures.summary())
            console.say(f"select: {figures.margin.count} of {len(examples)} prompts give pairs")
            _say_if_nothing_repeats(figures, config, console)
        return output.summary


def _select(examples: Source, chosen_by: SelectionRule, output: StepOutput) -> SelectionFigures:
    """What was selected before a restart is selected again, for the figures, but not written."""
    figures = SelectionFigures()
    for group in groups_of(examples, SELECTED_TOGETHER):
        choices = [select(example, chosen_by) for example in group]
        kept = [choice.example for choice in choices if isinstance(choice, Selected)]
        output.append(example.to_json() for example in kept if example.id not in output.done_ids)
        figures.dropped.update(choice.reason for choice in choices if isinstance(choice, Dropped))
        for example in kept:
            figures.add(example)
        if chosen_by.agreement:
            figures.repeated.add(
                float(max(answer_counts(example, chosen_by.agreement_key), default=0) > 1) for example in group
            )
    return figures


def _say_if_nothing_repeats(figures: SelectionFigures, config: SelectConfig, console: Console) -> None:
    """Counting answers that never repeat ranks by the score alone; nobody should believe that it did something."""
    if config.agreement and figures.repeated.count and not figures.repeated.mean:
        console.say(
            f"select: --agreement changed nothing: with --agreement-key {config.agreement_key} no prompt has the same "
            "answer twice; another key may find repeats"
        )


def rule(config: Any) -> SelectionRule:
    """The selection rule from a config with the select options."""
    return SelectionRule(
        method=config.select,
        temperature=config.score_temperature,
        min_margin=config.min_margin,
        agreement=config.agreement,
        agreement_key=config.agreement_key,
        keep_unfinished=config.keep_unfinished,
    )


@dataclass
class SelectionFigures:
    """Prompts kept, mean target of best against worst, mean lengths; how often the best is right, where known."""

    pairs: int = 0
    margin: Measure = field(default_factory=Measure)
    best: Measure = field(default_factory=Measure)
    worst: Measure = field(default_factory=Measure)
    score_margin: Measure = field(default_factory=Measure)
    right: Measure = field(default_factory=Measure)
    repeated: Measure = field(default_factory=Measure)
    """1 for each prompt, dropped ones included, with an answer that came more than once; only with agreement."""
    dropped: Counter[str] = field(default_factory=Counter[str])

    def add(self, example: Example) -> None:
        """One prompt with the responses that were kept, best first."""
        self.pairs += len(example.responses) * (len(example.responses) - 1) // 2
        self.margin.add([example.strengths[0] - example.strengths[-1]])
        self.score_margin.add([example.scores[0].value - example.scores[-1].value])
        self.best.add([_length(example, 0)])
        self.worst.add([_length(example, -1)])
        if example.reference is not None:
            self.right.add([float(example.responses[0].text.strip() == example.reference.strip())])

    def summary(self) -> Summary:
        """All that was added."""
        return {
            "prompts": self.margin.count,
            "pairs": self.pairs,
            "mean_margin": self.margin.mean,
            "mean_score_margin": self.score_margin.mean,
            "mean_tokens_best": self.best.mean,
            "mean_tokens_worst": self.worst.mean,
            "best_right_share": self.right.mean,
            **({"repeated_share": self.repeated.mean} if self.repeated.count else {}),
            "dropped": dict(self.dropped.most_common()),
        }


def _length(example: Example, index: int) -> float:
    response = example.responses[index]
    return float(len(response.token_ids)) if response.token_ids else float("nan")
