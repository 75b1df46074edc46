"""The loop: sample, judge, select, train, evaluate; each round from the model of the one before.

    selfjudge align --model path/to/model --prompts prompts.jsonl --rounds 3 --out runs/mine

A run's folder:

    run.json                      the options of the run
    start/evaluation.jsonl        the model before any training
    round-1/samples.jsonl  scored.jsonl  selected.jsonl  training.jsonl  model/  evaluation.jsonl  alarms.json
    round-2/...

Every file but the model stands beside a `.meta.json` with its options and its summary, written last. Killed at any
moment and started again with the same command, the run goes on and ends with the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from selfjudge.alarms import RoundFigures, alarm_names, alarms
from selfjudge.config import AlignConfig, EvaluateConfig, JudgeConfig, Options, SampleConfig, SelectConfig, TrainConfig
from selfjudge.console import Console
from selfjudge.errors import DataError, StepError
from selfjudge.inputs import Source, read_prompts, survey
from selfjudge.readers import hash_share
from selfjudge.records import Example
from selfjudge.report.loading import CONTROL_JUDGES
from selfjudge.steps import OpenModel, Summary, evaluate, groups_of, judge, report, sample, select, train, versions
from selfjudge.store import StepMeta, open_output, read_meta, without_nan, write_json_atomic

Step = TypeVar("Step", bound=Options)
RUN_FILE = "run.json"
WRITTEN_TOGETHER = 256  # prompts
ALARMS_FILE = "alarms.json"
WATCHED = {
    "margin": ("selected", "mean_score_margin"),
    "length": ("samples", "mean_tokens"),
    "mass": ("scored", "mean_label_mass"),
    "diversity": ("samples", "distinct_share"),
    "chosen": ("training", "chosen_change"),
}
"""Field of RoundFigures -> the step and the name in its summary."""
PREFERRED_FIGURES = ("greedy", "sampled", "judge_accuracy", "self_log_odds")


def run(config: AlignConfig, console: Console) -> Summary:
    """Runs what is not done yet and writes the report; returns the evaluation of the start and of every round."""
    out = Path(config.out)
    with read_prompts(config.prompts) as given, OpenModel(console.say) as model:
        prompts, held_out = _prompts(config, given)
        out.mkdir(parents=True, exist_ok=True)
        if not (out / RUN_FILE).exists():
            _record(config, out)
        found = {"start": _evaluate(config, config.model, out / "start", held_out, console, model)}
        current, stopped = config.model, {}
        for number in range(1, config.rounds + 1):
            folder = out / f"round-{number}"
            console.say(_opening(config, number, len(prompts)))
            _round(config, current, _of_round(prompts, number, config.prompts_per_round), folder, console, model)
            current = str(folder / "model")
            found[folder.name] = _evaluate(config, current, folder, held_out, console, model)
            raised = _watch(config, out, number, console)
            found[folder.name] |= {"alarms": raised} if raised else {}
            if stopped := _stop(config, number, raised, console):
                break
    _record(config, out, stopped)  # every step agreed with these options; one that was refused is not recorded
    written = report.run(report.ReportConfig(run=str(out)), console)
    last = {"stopped": stopped["stopped"]["words"]} if stopped else {}
    return {name: _headline(figures) for name, figures in found.items()} | last | {"model": current, **written}


def _record(config: AlignConfig, out: Path, stopped: Summary | None = None) -> None:
    write_json_atomic(out / RUN_FILE, {"config": config.model_dump(), "versions": versions()} | (stopped or {}))


def _prompts(config: AlignConfig, prompts: Source) -> tuple[Source, Source | None]:
    """Prompts of the rounds, and those held out to evaluate on where there is no benchmark."""
    if config.judge == "oracle":
        judge.check_references(prompts, config.prompts)
    if config.benchmark is not None:
        return prompts, None
    held_out = prompts.part(lambda prompt: hash_share(prompt.id) < config.holdout)
    rest = prompts.part(lambda prompt: hash_share(prompt.id) >= config.holdout)
    if not len(held_out) or not len(rest):
        raise DataError(
            f"{config.prompts}: {len(prompts)} prompts are too few to hold out {config.holdout:.0%}; "
            "give more prompts, another --holdout, or a --benchmark"
        )
    return rest, held_out


def _opening(config: AlignConfig, number: int, prompts: int) -> str:
    """What a round begins with, and how many of its prompts an earlier round had."""
    count = _stretch_length(prompts, config.prompts_per_round)
    again = min(count, max(0, number * count - prompts))
    used = f" ({again} of them again, the file has {prompts})" if again else ""
    return f"round-{number}: {count} prompts{used}, {config.num_responses} responses each"


def _stretch_length(prompts: int, size: int) -> int:
    return min(size or prompts, prompts)


def _of_round(prompts: Source, number: int, size: int) -> Source:
    return survey(prompts.entry["name"], lambda: _stretch(prompts, number, size))


def _stretch(prompts: Source, number: int, size: int) -> Iterator[Example]:
    """The prompts of a round: `size` of them, going on where the last round stopped, and from the top at the end."""
    count = _stretch_length(len(prompts), size)
    start = (number - 1) * count % len(prompts)
    return islice(chain(prompts, prompts), start, start + count)


def _round(
    config: AlignConfig, current: str, prompts: Source, folder: Path, console: Console, model: OpenModel
) -> None:
    """Samples of the current model -> scores -> pairs -> the next model."""
    seed = config.seed * 1000 + int(folder.name.removeprefix("round-"))
    files = {name: str(folder / f"{name}.jsonl") for name in ("prompts", "samples", "scored", "selected")}
    _write_prompts(prompts, files["prompts"])
    common = {"model": current, "seed": seed}
    sample.run(_derive(SampleConfig, config, **common, prompts=files["prompts"], out=files["samples"]), console, model)
    judging = _derive(JudgeConfig, config, **common, input=files["samples"], out=files["scored"])
    judge.run(judging, console, model, scores_given=config.in_place)
    selection = select.run(_derive(SelectConfig, config, input=files["scored"], out=files["selected"]), console)
    if not selection["prompts"]:
        raise StepError(f"{folder}: no prompt gives a pair to train on; {_reasons(selection['dropped'])}")
    if not (folder / "model").is_dir():
        model.close()
    trained = {"backend": "hf", "input": files["selected"], "out": str(folder)}  # whatever samples and judges
    first = {"reference_model": config.model} if config.reference == "first" else {}
    anchored = {"anchor_input": files["scored"]} if config.anchor else {}
    train.run(_derive(TrainConfig, config, **common, **trained, **first, **anchored), console)


def _watch(config: AlignConfig, out: Path, number: int, console: Console) -> dict[str, str]:
    """The alarms after a round, name -> words: said, and recorded beside the figures they come from."""
    history = [_round_figures(config, out / f"round-{earlier}") for earlier in range(1, number + 1)]
    names = {*alarm_names(config.warn_on), *alarm_names(config.stop_on)}
    raised = {alarm.name: alarm.words for alarm in alarms(history, names)}
    folder = out / f"round-{number}"
    write_json_atomic(folder / ALARMS_FILE, without_nan({"figures": asdict(history[-1]), "alarms": raised}))
    for name, words in raised.items():
        console.say(f"{folder.name}: alarm ({name}): {words}")
    return raised


def _round_figures(config: AlignConfig, folder: Path) -> RoundFigures:
    """From the summaries of the round's steps; a control judge's margins say nothing."""
    found = {field: _summary_figure(folder, step, name) for field, (step, name) in WATCHED.items()}
    return RoundFigures(**found | ({"margin": math.nan} if config.judge in CONTROL_JUDGES else {}))


def _summary_figure(folder: Path, step: str, name: str) -> float:
    value = (read_meta(folder / f"{step}.jsonl") or {"summary": {}})["summary"].get(name)
    return math.nan if value is None else float(value)


def _stop(config: AlignConfig, number: int, raised: dict[str, str], console: Console) -> dict[str, Summary]:
    """For run.json: why the run ends with this round; empty where it goes on."""
    asked = alarm_names(config.stop_on)
    reasons = [f"--stop-on {name}: {words}" for name, words in raised.items() if name in asked]
    if not reasons:
        return {}
    words = f"round {number} of {config.rounds} is the last, {'; '.join(reasons)}"
    console.say(f"stopped: {words}")
    return {"stopped": {"round": number, "words": words}}


def _reasons(dropped: dict[str, int]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in dropped.items())


def _write_prompts(prompts: Source, path: str) -> None:
    with open_output(path, StepMeta("prompts", {}, {"prompts": prompts.entry})) as output:
        if not output.finished:
            for group in groups_of(prompts, WRITTEN_TOGETHER):
                output.append(prompt.to_json() for prompt in group if prompt.id not in output.done_ids)
            output.finish({"prompts": len(prompts)})


def _evaluate(
    config: AlignConfig, name: str, folder: Path, held_out: Source | None, console: Console, model: OpenModel
) -> Summary:
    console.say(f"{folder.name}: evaluation")
    benchmark = config.benchmark or config.prompts
    changes: dict[str, Any] = {"model": name, "benchmark": benchmark, "out": str(folder / "evaluation.jsonl")}
    return evaluate.run(_derive(EvaluateConfig, config, **changes), console, model, held_out)


def _derive(kind: type[Step], config: Options, **changes: Any) -> Step:
    """A step's configuration: the fields it shares with the run's, and its own."""
    shared = {name: value for name, value in config.model_dump().items() if name in kind.model_fields}
    defaults = {"limit": 0} if "limit" in kind.model_fields else {}
    return kind(**(shared | defaults | changes))


def _headline(figures: Summary) -> Summary:
    return {name: figures[name] for name in (*PREFERRED_FIGURES, "alarms") if name in figures}
