"""The loop on the built-in world: settings chosen on its development questions, figures from its test questions.

selfjudge demo --rounds 3 --controls
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from selfjudge import loop
from selfjudge.config import AlignConfig, DemoConfig, ReportConfig
from selfjudge.console import Console
from selfjudge.steps import Summary, report
from selfjudge.store import read_meta

SETTINGS: dict[str, Any] = {
    "prompts": "lab",
    "benchmark": "lab",
    "prompts_per_round": 512,
    "threads": 1,
    "num_responses": 8,
    "eval_samples": 16,
    "temperature": 1.0,
    "max_new_tokens": 24,
    "loss": "dpo",
    "beta": 0.1,
    "learning_rate": 7e-5,
    "schedule": "linear",
    "epochs": 2,
    "batch_size": 32,
    "lora_rank": 0,
    "save_steps": 0,
}
CONTROLS = ("oracle", "random")


def run(config: DemoConfig, console: Console) -> Summary:
    """One run per arm; returns {"start": figures, "arms": {judge: figures of the last round}, "report": path}."""
    arms = ("yes-no", *(CONTROLS if config.controls else ()))
    out = Path(config.out)
    for judge in arms:
        console.say(f"arm {judge}")
        share_start(out / arms[0], out / judge)
        found = loop.run(arm(config, judge), console)
        console.say(f"{judge}: {_change(found['start'], found[f'round-{config.rounds}'])}")
    return _figures(out, arms, config.rounds) | report.run(ReportConfig(run=str(out)), console)


def arm(config: DemoConfig, judge: str) -> AlignConfig:
    """The run of one arm."""
    own = {"model": config.model, "judge": judge, "rounds": config.rounds, "seed": config.seed}
    return AlignConfig.model_validate(SETTINGS | own | {"out": str(Path(config.out) / judge)})


def share_start(first: Path, other: Path) -> None:
    """What does not depend on the judge is the same in every arm: the start's evaluation and the first samples."""
    if first == other:
        return
    for pattern in ("start/evaluation*", "round-1/prompts*", "round-1/samples*"):
        for file in first.glob(pattern):
            target = other / file.relative_to(first)
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, target)


def _change(start: Summary, last: Summary) -> str:
    """The figures before and after, with their 95 % intervals over questions."""
    return "; ".join(f"{name} {_shown(start[name])} -> {_shown(last[name])}" for name in ("sampled", "greedy"))


def _shown(figure: Summary) -> str:
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def _figures(out: Path, arms: tuple[str, ...], rounds: int) -> Summary:
    return {
        "start": _means(out / arms[0] / "start"),
        "arms": {judge: _means(out / judge / f"round-{rounds}") for judge in arms},
    }


def _means(folder: Path) -> Summary:
    """Means of the headline figures; their intervals stand in the summary file and in the report."""
    meta = read_meta(folder / "evaluation.jsonl") or {}
    return {name: meta["summary"][name]["value"] for name in ("greedy", "sampled", "judge_accuracy")}
