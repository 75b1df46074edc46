"""Responses -> one score each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from selfjudge.config import JudgeConfig, JudgeOptions
from selfjudge.console import Console
from selfjudge.errors import DataError
from selfjudge.inputs import Source, read_scorable
from selfjudge.judges import JUDGES, Judge, JudgeSetup
from selfjudge.judges.pairwise import order_flips
from selfjudge.judges.yes_no import YesNo
from selfjudge.measures import JudgedPairs, Measure, agreement_figures, pair_differences, prompt_number
from selfjudge.questions import load_questions
from selfjudge.records import Example
from selfjudge.steps import OpenModel, Summary, earlier_rows, groups_of, step_meta
from selfjudge.store import StepOutput, open_output

LITTLE_MASS = 0.1
AS_REFERENCE = (
    "--layout reference: asked as the reference implementation asks (no chat template, cut at the right, pieces of "
    "words added up), for comparison with its figures only"
)
JUDGED_TOGETHER = 64  # examples; a restart judges the same groups again, so that rounding is the same too


def run(config: JudgeConfig, console: Console, model: OpenModel | None = None, scores_given: bool = False) -> Summary:
    """Judges every row that has no score yet; returns the summary of all rows.

    `scores_given`: the rows hold the scores that sampling wrote; they are passed on.
    """
    with read_scorable(config.input, ("responses",), config.limit) as examples:
        if config.judge == "oracle":
            check_references(examples, config.input)
        with open_output(config.out, step_meta("judge", config, input=examples.entry)) as output:
            if output.finished:
                return output.summary
            with OpenModel(console.say) as own:
                opened = model or own
                judge = list if scores_given else make_judge(config, opened, config.judge, config.seed)
                asked_twice = config.compare_separate if config.in_place and not scores_given else 0
                opened.estimate(lambda: rehearse(config, examples, judge, output.done_ids, asked_twice, opened))
                comparison = SeparateComparison(examples, asked_twice)
                figures = judge_rows(examples, judge, output, console, comparison.seen)
                output.finish(figures.summary() | comparison.summary(config, opened))
            _warn_of_little_mass(output.summary["mean_label_mass"], JUDGES[config.judge].labels, console)
            warn_of_bounds(figures, console)
            return output.summary


def rehearse(
    config: JudgeOptions, examples: Source, judge: Judge, done: Container[str], asked_twice: int, model: OpenModel
) -> None:
    """Judges without writing anything, for an estimate of the requests."""
    comparison = SeparateComparison(examples, asked_twice)
    for group in unjudged(examples, done):
        for example in judge(group):
            comparison.seen(example)
    if config.judge_model is None:
        comparison.summary(config, model)


def unjudged(examples: Iterable[Example], done: Container[str]) -> Iterator[list[Example]]:
    """Groups that are judged together, those of which every row is there already left out."""
    for group in groups_of(examples, JUDGED_TOGETHER):
        if not all(example.id in done for example in group):
            yield group


def judge_rows(
    examples: Source,
    judge: Judge,
    output: StepOutput,
    console: Console,
    seen: Callable[[Example], Example] = lambda example: example,
) -> JudgeFigures:
    """Judges and writes every example that has no row yet; `seen` gets every judged one, earlier rows included."""
    figures = JudgeFigures()
    for row in earlier_rows(output):
        figures.add(seen(Example.from_json(row)))
    with console.progress("judge", len(examples), len(output.done_ids)) as bar:
        for group in unjudged(examples, output.done_ids):
            new = [scored for scored in judge(group) if scored.id not in output.done_ids]
            output.append(example.to_json() for example in new)
            for example in new:
                figures.add(seen(example))
            bar.update(len(new))
    return figures


class SeparateComparison:
    """How the ranking of examples judged in place agrees with the separate question, on the first `count` of a step."""

    def __init__(self, examples: Iterable[Example], count: int) -> None:
        self._first = {example.id for example in islice(examples, count)}
        self._in_place: list[Example] = []

    def seen(self, example: Example) -> Example:
        """Passes a judged example on; keeps it where it is among the first."""
        if example.id in self._first:
            self._in_place.append(example)
        return example

    def summary(self, config: Any, model: OpenModel) -> Summary:
        """Asks the separate question about the examples that were kept; nothing where there are none."""
        if not self._in_place:
            return {}
        questions = load_questions(config.questions, config.wording, config.ablation)
        separate = YesNo(model.get(config), questions)(self._in_place)
        return {"agreement": agreement_figures(list(zip(self._in_place, separate, strict=True)))}


def _warn_of_little_mass(mass: float | None, labels: str, console: Console) -> None:
    if mass is not None and mass < LITTLE_MASS:
        console.say(
            f"judge: only {mass:.2%} of the probability is on {labels}: the model is not answering the question, "
            "so its scores are mostly noise"
        )


def warn_of_bounds(figures: JudgeFigures, console: Console) -> None:
    """Says how many scores are bounds, where there are any."""
    if figures.bounded:
        console.say(
            f"judge: {figures.bounded} of {figures.responses} scores are bounds: the server lists too few tokens to "
            "show every label; they are marked in the rows' evidence"
        )


def check_references(examples: Iterable[Example], source: str) -> None:
    """The oracle judge compares with reference answers; raises DataError before anything is done without them."""
    without = (example.id for example in examples if example.reference is None)
    first = next(without, None)
    if first is not None:
        count = 1 + sum(1 for _ in without)
        problem = f"{count} rows have no `reference` answer for the oracle judge, the first is {first}"
        raise DataError.at(source, None, problem)


def make_judge(config: Any, model: OpenModel, name: str = "yes-no", seed: int = 0) -> Judge:
    """The judge called `name` with the wording and layout of the config, asking its judging models."""
    kind = JUDGES[name]
    names = judging_models(config)
    questions = load_questions(config.questions, config.wording, config.ablation)
    setup = JudgeSetup(questions=questions, in_place=config.in_place, seed=seed, layout=config.layout)
    if config.layout == "reference" and name == "yes-no":
        model.say(AS_REFERENCE)
    if kind.asks == "language model":
        setup = replace(setup, backends=tuple(model.get_all(config, names)), models=tuple(names))
    if kind.asks == "reward model":
        setup = replace(setup, scorers=tuple(model.get_all(config, names, kind.asks)))
    if isinstance(config, JudgeOptions):  # an evaluation asks the yes-no judge, and looks at all of its label mass
        setup = replace(setup, mass_share=config.label_mass, tokens=config.judge_tokens, orders=config.orders)
        setup = replace(setup, annotators=config.annotators, votes=config.votes)
    return kind.make(setup)


def judging_models(config: Any) -> list[str]:
    """The models of `--judge-model`; the model itself where there is none, or no such option."""
    given = getattr(config, "judge_model", None)
    return [config.model] if given is None else given.split(",")


@dataclass
class JudgeFigures:
    """Counts, mean score and label mass; accuracy where the right responses are known, flips where pairs were shown."""

    prompts: int = 0
    responses: int = 0
    missing: int = 0
    truncated: int = 0
    bounded: int = 0
    """Scores for which an API did not list every label."""
    reasons: Counter[str] = field(default_factory=Counter[str])
    scores: Measure = field(default_factory=Measure)
    masses: Measure = field(default_factory=Measure)
    margins: Measure = field(default_factory=Measure)
    flips: Measure = field(default_factory=Measure)
    pairs: JudgedPairs = field(default_factory=JudgedPairs)

    def add(self, example: Example) -> None:
        """One prompt with its scored responses."""
        known = [score.value for score in example.scores if not math.isnan(score.value)]
        self.prompts += 1
        self.responses += len(example.scores)
        self.missing += len(example.scores) - len(known)
        self.truncated += sum(score.truncated for score in example.scores)
        self.bounded += sum(score.evidence.get("bounded", False) for score in example.scores)
        self.reasons.update(score.reason for score in example.scores if score.reason is not None)
        self.scores.add(known)
        self.masses.add(score.label_mass for score in example.scores)
        self.margins.add([max(known) - min(known)] if known else [])
        self.flips.add(order_flips(example))
        self.pairs.add(pair_differences(example), prompt_number(example.messages))

    def summary(self) -> Summary:
        """All that was added."""
        counts = {name: getattr(self, name) for name in ("prompts", "responses", "missing", "truncated")}
        if self.bounded:
            counts["bounded"] = self.bounded
        reasons = {"reasons": dict(sorted(self.reasons.items()))} if self.reasons else {}
        return counts | {
            "truncated_share": self.truncated / self.responses if self.responses else math.nan,
            **reasons,
            "mean_score": self.scores.mean,
            "mean_label_mass": self.masses.mean,
            "mean_margin": self.margins.mean,
            **({"order_flips": self.flips.mean} if self.flips.count else {}),
            **self.pairs.figures(),
        }
