"""A model -> how good its answers are where the right one is known, and how well it judges."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from selfjudge.backends import Backend, SampleRequest, Sampling
from selfjudge.config import EvaluateConfig
from selfjudge.console import Console
from selfjudge.errors import DataError
from selfjudge.inputs import entry, read_scorable
from selfjudge.judges import Judge
from selfjudge.measures import Difference, Measure, interval_of, judge_figures, pair_differences
from selfjudge.records import Example, Response, Score
from selfjudge.steps import OpenModel, Summary, all_rows, step_meta
from selfjudge.steps.judge import make_judge
from selfjudge.steps.sample import sampling
from selfjudge.store import Row, open_output

EVALUATED_TOGETHER = 256


def run(
    config: EvaluateConfig, console: Console, model: OpenModel | None = None, examples: list[Example] | None = None
) -> Summary:
    """Answers and judges every row of the benchmark (or of `examples`) that is not done yet."""
    rows = read_scorable(config.benchmark, (), config.limit) if examples is None else examples
    if not rows:
        raise DataError.at(config.benchmark, None, "no rows to evaluate on")
    with open_output(config.out, step_meta("evaluate", config, benchmark=_entry(config, rows, examples))) as output:
        if output.finished:
            return output.summary
        written: list[Row] = []
        with OpenModel(console.say) as own:
            opened = model or own
            backend, judge = opened.get(config), make_judge(config, opened)
            with console.progress("evaluate", len(rows), len(output.done_ids)) as bar:
                for start in range(0, len(rows), EVALUATED_TOGETHER):
                    group = rows[start : start + EVALUATED_TOGETHER]
                    if all(example.id in output.done_ids for example in group):
                        continue
                    found = _evaluate(group, config, backend, judge)
                    fresh = [row for row in found if row["id"] not in output.done_ids]
                    output.append(fresh)
                    written += fresh if output.path is None else []
                    bar.update(len(fresh))
        output.finish(summarise(all_rows(output, written)))
        return output.summary


def _entry(config: EvaluateConfig, rows: list[Example], given: list[Example] | None) -> dict[str, str]:
    return entry(config.benchmark if given is None else "-", rows)


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
    row["differences"] = [] if given is None else [[kind, _or_none(d)] for _, kind, d in pair_differences(given)]
    return row


def _answer(response: Response, reference: str | None) -> Row:
    answer: Row = {"text": response.text, "tokens": len(response.token_ids or ()), "finished": response.finished}
    if reference is not None:
        answer["right"] = response.finished and response.text.strip() == reference.strip()
    return answer


def _score(score: Score) -> Row:
    row: Row = {"log_odds": _or_none(score.log_odds), "label_mass": _or_none(score.label_mass)}
    if score.truncated:
        row["truncated"] = True
    return row if score.reason is None else row | {"reason": score.reason}


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def summarise(rows: Iterable[Row]) -> Summary:
    """Figures over all rows and, where there are several categories, for each."""
    everything = list(rows)
    summary: Summary = {"questions": len(everything)} | _figures(everything)
    categories = sorted({row["category"] for row in everything})
    if len(categories) > 1:
        groups = {name: [row for row in everything if row["category"] == name] for name in categories}
        summary["by_category"] = {name: {"questions": len(group)} | _figures(group) for name, group in groups.items()}
    return summary


def _figures(rows: Sequence[Row]) -> Summary:
    known = [row for row in rows if row["reference"] is not None]
    figures: Summary = {}
    if known:
        figures["greedy"] = interval_of([float(row["greedy"]["right"]) for row in known])
        figures["sampled"] = interval_of([_share_right(row) for row in known])
        figures["any_right"] = interval_of([float(_share_right(row) > 0) for row in known])
    differences: list[Difference] = [
        (row["id"], kind, math.nan if d is None else d) for row in rows for kind, d in row["differences"]
    ]
    if differences:
        figures |= judge_figures(differences)
    return figures | _self_judged(rows)


def _share_right(row: Row) -> float:
    return sum(sample["right"] for sample in row["samples"]) / len(row["samples"])


def _self_judged(rows: Sequence[Row]) -> Summary:
    """What the model says of its own samples: no proof of anything, but its drift is worth seeing."""
    log_odds, p_yes, mass, tokens, unfinished = Measure(), Measure(), Measure(), Measure(), Measure()
    for sample in (sample for row in rows for sample in row["samples"]):
        value = math.nan if sample["log_odds"] is None else sample["log_odds"]
        log_odds.add([value])
        p_yes.add([0.5 + 0.5 * math.tanh(value / 2)])  # the sigmoid, without overflow
        mass.add([math.nan if sample["label_mass"] is None else sample["label_mass"]])
        tokens.add([sample["tokens"]])
        unfinished.add([float(not sample["finished"])])
    return {
        "self_log_odds": log_odds.mean,
        "self_p_yes": p_yes.mean,
        "label_mass": mass.mean,
        "mean_tokens": tokens.mean,
        "unfinished_share": unfinished.mean,
    }
