"""A model -> how good its answers are where the right one is known, and how well it judges."""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from selfjudge.backends import Backend, SampleRequest, Sampling
from selfjudge.config import EvaluateConfig
from selfjudge.console import Console
from selfjudge.inputs import Source, read_scorable
from selfjudge.judges import Judge
from selfjudge.measures import JudgedPairs, Measure, interval_of, pair_differences
from selfjudge.records import Example, Response, Score
from selfjudge.steps import OpenModel, Summary, earlier_rows, groups_of, step_meta
from selfjudge.steps.judge import make_judge
from selfjudge.steps.sample import sampling
from selfjudge.store import Row, StepOutput, open_output

EVALUATED_TOGETHER = 256


def run(
    config: EvaluateConfig, console: Console, model: OpenModel | None = None, examples: Source | None = None
) -> Summary:
    """Answers and judges every row of the benchmark (or of `examples`) that is not done yet."""
    if examples is None:
        with read_scorable(config.benchmark, (), config.limit) as benchmark:
            return _run(config, console, model, benchmark)
    return _run(config, console, model, examples)


def _run(config: EvaluateConfig, console: Console, model: OpenModel | None, examples: Source) -> Summary:
    with open_output(config.out, step_meta("evaluate", config, benchmark=examples.entry)) as output:
        if not output.finished:
            figures = EvaluationFigures()
            for row in earlier_rows(output):
                figures.add(row)
            with OpenModel(console.say) as own:
                for row in _new_rows(config, examples, model or own, output, console):
                    figures.add(row)
            output.finish(figures.summary())
        return output.summary


def _new_rows(
    config: EvaluateConfig, examples: Source, model: OpenModel, output: StepOutput, console: Console
) -> Iterator[Row]:
    """The rows that were missing, once they are written."""
    backend, judge = model.get(config), make_judge(config, model)
    model.estimate(lambda: [_evaluate(group, config, backend, judge) for group in _missing(examples, output)])
    with console.progress("evaluate", len(examples), len(output.done_ids)) as bar:
        for group in _missing(examples, output):
            new = [row for row in _evaluate(group, config, backend, judge) if row["id"] not in output.done_ids]
            output.append(new)
            yield from new
            bar.update(len(new))


def _missing(examples: Source, output: StepOutput) -> Iterator[list[Example]]:
    """Groups that are computed together, those of which every row is there already left out."""
    for group in groups_of(examples, EVALUATED_TOGETHER):
        if not all(example.id in output.done_ids for example in group):
            yield group


def _evaluate(examples: Sequence[Example], config: Any, backend: Backend, judge: Judge) -> list[Row]:
    drawn = sampling(config, config.eval_samples)
    greedy = _answers(backend, examples, replace(drawn, num_responses=1, temperature=0.0))
    samples = _answers(backend, examples, drawn)
    own = judge([replace(e, responses=samples[e.id], gold=None) for e in examples])
    given = judge([example for example in examples if example.responses])
    given_scores = {example.id: example for example in given}
    return [_row(e, greedy[e.id][0], o, given_scores.get(e.id)) for e, o in zip(examples, own, strict=True)]


def _answers(backend: Backend, examples: Sequence[Example], drawn: Sampling) -> dict[str, tuple[Response, ...]]:
    requests = [SampleRequest(example.id, example.messages) for example in examples]
    return {result.key: result.responses for batch in backend.generate(requests, drawn) for result in batch}


def _row(example: Example, greedy: Response, own: Example, given: Example | None) -> Row:
    row: Row = {"id": example.id, "category": own.category, "prompt": example.messages[-1].content}
    row["reference"] = example.reference
    row["greedy"] = _answer(greedy, example.reference)
    row["samples"] = [
        _answer(response, example.reference) | _score(score)
        for response, score in zip(own.responses, own.scores, strict=True)
    ]
    row["judged"] = [] if given is None else [_score(score) for score in given.scores]
    row["differences"] = [] if given is None else [[kind, _or_none(d)] for kind, d in pair_differences(given)]
    return row


def _answer(response: Response, reference: str | None) -> Row:
    tokens = None if response.token_ids is None else len(response.token_ids)
    answer: Row = {"text": response.text, "tokens": tokens, "finished": response.finished}
    if reference is not None:
        answer["right"] = response.finished and response.text.strip() == reference.strip()
    return answer


def _score(score: Score) -> Row:
    row: Row = {"log_odds": _or_none(score.value), "label_mass": _or_none(score.label_mass)}
    if score.truncated:
        row["truncated"] = True
    if score.evidence.get("bounded"):
        row["bounded"] = True
    return row if score.reason is None else row | {"reason": score.reason}


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


@dataclass
class SelfJudged:
    """What the model says of its own samples: no proof of anything, but its drift is worth seeing."""

    log_odds: Measure = field(default_factory=Measure)
    p_yes: Measure = field(default_factory=Measure)
    mass: Measure = field(default_factory=Measure)
    tokens: Measure = field(default_factory=Measure)
    unfinished: Measure = field(default_factory=Measure)

    def add(self, sample: Row) -> None:
        """One sampled answer with its score."""
        value = math.nan if sample["log_odds"] is None else sample["log_odds"]
        self.log_odds.add([value])
        self.p_yes.add([0.5 + 0.5 * math.tanh(value / 2)])  # the sigmoid, without overflow
        self.mass.add([math.nan if sample["label_mass"] is None else sample["label_mass"]])
        self.tokens.add([math.nan if sample["tokens"] is None else sample["tokens"]])
        self.unfinished.add([float(not sample["finished"])])

    def summary(self) -> Summary:
        """Means over all that was added."""
        return {
            "self_log_odds": self.log_odds.mean,
            "self_p_yes": self.p_yes.mean,
            "label_mass": self.mass.mean,
            "mean_tokens": self.tokens.mean,
            "unfinished_share": self.unfinished.mean,
        }


def _no_numbers() -> array[float]:
    return array("d")


class EvaluationFigures:
    """Figures over all rows and, where there are several categories, for each."""

    def __init__(self) -> None:
        self._all = _Figures()
        self._by_category: defaultdict[str, _Figures] = defaultdict(_Figures)

    def add(self, row: Row) -> None:
        """One question with its answers."""
        self._all.add(row)
        self._by_category[row["category"]].add(row)

    def summary(self) -> Summary:
        """All that was added."""
        summary = self._all.summary()
        if len(self._by_category) > 1:
            summary["by_category"] = {name: part.summary() for name, part in sorted(self._by_category.items())}
        return summary


@dataclass
class _Figures:
    """Of one set of questions; of each are kept the few numbers that intervals need."""

    questions: int = 0
    greedy: array[float] = field(default_factory=_no_numbers)
    """1 or 0 per question whose right answer is known."""
    sampled: array[float] = field(default_factory=_no_numbers)
    """Share of right samples per such question."""
    pairs: JudgedPairs = field(default_factory=JudgedPairs)
    own: SelfJudged = field(default_factory=SelfJudged)

    def add(self, row: Row) -> None:
        self.questions += 1
        if row["reference"] is not None:
            self.greedy.append(row["greedy"]["right"])
            self.sampled.append(sum(sample["right"] for sample in row["samples"]) / len(row["samples"]))
        self.pairs.add((kind, math.nan if d is None else d) for kind, d in row["differences"])
        for sample in row["samples"]:
            self.own.add(sample)

    def summary(self) -> Summary:
        figures: Summary = {"questions": self.questions}
        if self.greedy:
            figures["greedy"] = interval_of(self.greedy)
            figures["sampled"] = interval_of(self.sampled)
            figures["any_right"] = interval_of(np.asarray(self.sampled) > 0)
        return figures | self.pairs.figures() | self.own.summary()
