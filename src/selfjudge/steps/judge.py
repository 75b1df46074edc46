"""Responses -> one score each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from selfjudge.config import JudgeConfig
from selfjudge.console import Console
from selfjudge.errors import DataError
from selfjudge.inputs import entry, read_scorable
from selfjudge.judges import JUDGES, NEEDS_MODEL, Judge, JudgeSetup
from selfjudge.judges.yes_no import YesNo
from selfjudge.measures import Measure, agreement_figures, judge_figures, pair_differences
from selfjudge.questions import load_questions
from selfjudge.records import Example
from selfjudge.steps import OpenModel, Summary, all_rows, step_meta
from selfjudge.store import Row, open_output

LITTLE_MASS = 0.1
JUDGED_TOGETHER = 64  # examples; a restart judges the same groups again, so that rounding is the same too


def run(config: JudgeConfig, console: Console, model: OpenModel | None = None, scores_given: bool = False) -> Summary:
    """Judges every row that has no score yet; returns the summary of all rows.

    `scores_given`: the rows hold the scores that sampling wrote; they are passed on.
    """
    examples = read_scorable(config.input, ("responses",), config.limit)
    if config.judge == "oracle":
        check_references(examples, config.input)
    with open_output(config.out, step_meta("judge", config, input=entry(config.input, examples))) as output:
        if output.finished:
            return output.summary
        written: list[Row] = []
        with OpenModel() as own:
            opened = model or own
            judge = list if scores_given else make_judge(config, opened, config.judge, config.seed)
            with console.progress("judge", len(examples), len(output.done_ids)) as bar:
                for start in range(0, len(examples), JUDGED_TOGETHER):
                    group = examples[start : start + JUDGED_TOGETHER]
                    if all(example.id in output.done_ids for example in group):
                        continue
                    rows = [scored.to_json() for scored in judge(group) if scored.id not in output.done_ids]
                    output.append(rows)
                    written += rows if output.path is None else []
                    bar.update(len(rows))
            summary = summarise(all_rows(output, written))
            if config.in_place and not scores_given:
                summary |= compare_separate(config, opened, examples, all_rows(output, written))
        output.finish(summary)
        mass = output.summary["mean_label_mass"]
        if mass is not None and mass < LITTLE_MASS:
            console.say(
                f"judge: only {mass:.2%} of the probability is on Yes and No: the model is not answering the question, "
                "so its scores are mostly noise"
            )
        return output.summary


def check_references(examples: Iterable[Example], source: str) -> None:
    """The oracle judge compares with reference answers; raises DataError before anything is done without them."""
    without = [example.id for example in examples if example.reference is None]
    if without:
        raise DataError.at(
            source,
            None,
            f"{len(without)} rows have no `reference` answer for the oracle judge, the first is {without[0]}",
        )


def compare_separate(config: Any, model: OpenModel, examples: Sequence[Example], rows: Iterable[Row]) -> Summary:
    """How the ranking of rows judged in place agrees with the separate question, on the first prompts of a step."""
    first = {example.id for example in examples[: config.compare_separate]}
    if not first:
        return {}
    in_place = [Example.from_json(row) for row in rows if row["id"] in first]
    separate = YesNo(model.get(config), load_questions(config.questions))(in_place)
    return {"agreement": agreement_figures(list(zip(in_place, separate, strict=True)))}


def make_judge(config: Any, model: OpenModel, name: str = "yes-no", seed: int = 0) -> Judge:
    """The judge called `name` with the wording and layout of the config."""
    backend = model.get(config) if name in NEEDS_MODEL else None
    return JUDGES[name](JudgeSetup(backend, load_questions(config.questions), config.in_place, seed))


def summarise(rows: Iterable[Row]) -> Summary:
    """Counts, mean score and label mass, share truncated; accuracy where the right responses are known."""
    summary: dict[str, Any] = {"prompts": 0, "responses": 0, "missing": 0, "truncated": 0}
    log_odds, masses, margins = Measure(), Measure(), Measure()
    differences: list[tuple[str, str, float]] = []
    for row in rows:
        example = Example.from_json(row)
        scores = [score.log_odds for score in example.scores]
        known = [score for score in scores if not math.isnan(score)]
        summary["prompts"] += 1
        summary["responses"] += len(scores)
        summary["missing"] += len(scores) - len(known)
        summary["truncated"] += sum(score.truncated for score in example.scores)
        log_odds.add(known)
        masses.add(score.label_mass for score in example.scores)
        margins.add([max(known) - min(known)] if known else [])
        differences += pair_differences(example)
    figures = {"mean_log_odds": log_odds.mean, "mean_label_mass": masses.mean, "mean_margin": margins.mean}
    return summary | figures | (judge_figures(differences) if differences else {})
