"""Section 1: what ran, with which options, and whether it is complete."""

from __future__ import annotations

import shlex
from typing import Any

from selfjudge.config import AlignConfig, flag
from selfjudge.report.blocks import Block, Command, Facts, Section, Text
from selfjudge.report.loading import Arm, Run, file_dates, unfinished

JUDGES = {
    "yes-no": "yes-no: the model itself, by log-odds of Yes against No",
    "committee": "committee: the votes of several question wordings and models",
    "reward-model": "reward-model: the raw logit of a sequence classifier",
    "oracle": "oracle: comparison with the reference answer (upper bound)",
    "random": "random: chance (control, must not improve)",
}


def section(run: Run) -> Section:
    """Unfinished rounds first, then the options."""
    stops = [(arm, line) for arm in run.arms for line in unfinished(arm)]
    named = [f"{arm.name}: {line}" if run.several else line for arm, line in stops]
    blocks: list[Block] = []
    if named:
        blocks.append(Text("Unfinished: " + "; ".join(named) + ". The same command goes on from there.", "alarm"))
    blocks += [Text(f"Stopped{_of(run, arm)}: {arm.stopped}.") for arm in run.arms if arm.stopped]
    blocks += [Facts(_facts(run)), Command(command(run.first))]
    if run.several:
        others = ", ".join(arm.name for arm in run.arms[1:])
        blocks.append(Text(f"The command of the arm {run.first.name}; {others}: {_differences(run)}."))
    return Section("ran", "What ran", blocks)


def _of(run: Run, arm: Arm) -> str:
    return f" ({arm.name})" if run.several else ""


def _facts(run: Run) -> list[tuple[str, str]]:
    config = run.first.config
    facts = [
        ("Model", f"{config.get('model')} (backend {config.get('backend')}, {config.get('dtype')})"),
        ("Prompts", _prompts(config)),
        ("Evaluated on", _benchmark(config)),
        ("Rounds", _rounds(run)),
        ("Judge", "; ".join(_judge(arm) for arm in run.arms)),
        ("Samples", _samples(config)),
        ("Pairs", _pairs(config)),
        ("Loss", _loss(config)),
        ("Training", _training(config)),
        ("Seed", str(config.get("seed"))),
        ("Versions", ", ".join(f"{name} {version}" for name, version in run.first.versions.items())),
        ("Files", f"{run.folder}, written {_dates(run)}"),
    ]
    return [(term, text) for term, text in facts if text]


def _prompts(config: dict[str, Any]) -> str:
    size = config.get("prompts_per_round")
    return f"{config.get('prompts')}, " + (f"{size} in each round" if size else "all of them in each round")


def _benchmark(config: dict[str, Any]) -> str:
    benchmark, samples = config.get("benchmark"), config.get("eval_samples")
    source = benchmark or f"prompts held out of all rounds ({100 * config.get('holdout', 0):.0f} % of the file)"
    return f"{source}; 1 greedy and {samples} sampled answers per question"


def _rounds(run: Run) -> str:
    counts = {arm.name: sum(item.steps["evaluation"].state == "done" for item in arm.rounds[1:]) for arm in run.arms}
    texts = [f"{counts[arm.name]} of {len(arm.rounds) - 1}" for arm in run.arms]
    if len(set(texts)) == 1:
        return f"{texts[0]} finished" + (" in every arm" if run.several else "")
    return "; ".join(f"{arm.name}: {text} finished" for arm, text in zip(run.arms, texts, strict=True))


def _judge(arm: Arm) -> str:
    judge = str(arm.config.get("judge"))
    wording = f", questions from {arm.config['questions']}" if arm.config.get("questions") else ""
    return JUDGES.get(judge, judge) + wording + (", asked in place" if arm.config.get("in_place") else "")


def _samples(config: dict[str, Any]) -> str:
    cut = [f"{name.replace('_', '-')} {config[name]}" for name in ("top_p", "top_k", "min_p") if _set(config, name)]
    first = f"{config.get('num_responses')} responses per prompt at temperature {config.get('temperature')}"
    return ", ".join([first, f"at most {config.get('max_new_tokens')} tokens", *cut])


def _pairs(config: dict[str, Any]) -> str:
    names = ("score_temperature", "agreement", "agreement_key", "min_margin", "keep_unfinished")
    rest = [f"{name.replace('_', ' ')} {config[name]}" for name in names if _set(config, name)]
    return ", ".join([str(config.get("select")), *rest])


def _loss(config: dict[str, Any]) -> str:
    loss = str(config.get("loss"))
    options = {"dpo": ("beta",), "soft-bce": ("beta",), "azar": ("tau",), "irepo": ("beta", "z_max")}.get(loss, ())
    shown = [f"{name} {config.get(name)}" for name in options]
    return ", ".join([loss, *shown, f"reference: {config.get('reference')}"])


def _training(config: dict[str, Any]) -> str:
    rank = config.get("lora_rank")
    weights = f"LoRA of rank {rank}, alpha {config.get('lora_alpha')}" if rank else "all weights"
    rate = f"learning rate {config.get('learning_rate')} ({config.get('schedule')}, warm-up {config.get('warmup')})"
    epochs = f"{config.get('epochs')} epoch" + ("" if config.get("epochs") == 1 else "s")
    return ", ".join([weights, rate, epochs, f"batches of {config.get('batch_size')} prompts"])


def _set(config: dict[str, Any], name: str) -> bool:
    return name in config and config[name] != AlignConfig.model_fields[name].default


def _dates(run: Run) -> str:
    first, last = file_dates(run)
    end = f"{last:%H:%M}" if first.date() == last.date() else f"{last:%Y-%m-%d %H:%M}"
    return f"{first:%Y-%m-%d %H:%M} to {end} UTC"


def command(arm: Arm) -> list[str]:
    """The command line that gives the arm's options, an option a part; those at their defaults are left out."""
    names = ["model", "prompts", *(name for name in arm.config if name not in ("model", "prompts"))]
    shown = [name for name in names if name in AlignConfig.model_fields and _set(arm.config, name)]
    return ["selfjudge align", *(_option(name, arm.config[name]) for name in shown)]


def _option(name: str, value: Any) -> str:
    return flag(name) if value is True else shlex.join([flag(name), str(value)])


def _differences(run: Run) -> str:
    """Options in which the arms differ, but for their folders."""
    configs = [arm.config for arm in run.arms]
    names = [name for name in configs[0] if name != "out" and len({str(one.get(name)) for one in configs}) > 1]
    if not names:
        return "the same options"
    shown = [f"{flag(name)} {' / '.join(str(one.get(name)) for one in configs[1:])}" for name in names]
    return "the same but for " + ", ".join(shown)
