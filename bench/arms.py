"""The arms side by side: the same loop with other judges, selections and losses on the built-in world, several seeds.

    python -m bench.arms --rounds 10 --seeds 3 --out runs/arms            # prints a table; goes on where it stopped

Every arm of a seed starts from the same evaluation and the same first samples. The oracle judge is what the truth
would give, the random judge what noise gives.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.table import table
from selfjudge import loop
from selfjudge.checks import build_checked
from selfjudge.config import AlignConfig
from selfjudge.console import Console
from selfjudge.demo import SETTINGS, share_start
from selfjudge.measures import interval_of
from selfjudge.store import read_meta

ARMS: dict[str, dict[str, Any]] = {
    "dpo": {},
    "dpo, agreement": {"agreement": 2.0},
    "irepo": {"loss": "irepo", "beta": 1.0, "z_max": 3.0},
    "irepo, first": {"loss": "irepo", "beta": 1.0, "z_max": 3.0, "reference": "first"},
    "irepo, first, agreement": {
        "loss": "irepo",
        "beta": 1.0,
        "z_max": 3.0,
        "reference": "first",
        "agreement": 2.0,
    },
    "soft-bce": {"loss": "soft-bce"},
    "azar": {"loss": "azar"},
    "committee": {"judge": "committee"},
    "oracle": {"judge": "oracle"},
    "random": {"judge": "random"},
}
HEADER = ("arm", "seeds", "start", "round 3", "last round", "best round", "greedy, last", "judge, last", "seconds")


def folder_of(out: Path, arm: str, seed: int) -> Path:
    """Where the run of an arm stands."""
    return out / f"seed-{seed}" / arm.replace(", ", "-")


def run_arm(arm: str, seed: int, options: argparse.Namespace) -> None:
    """One run of the loop; one that is finished is not touched."""
    folder = folder_of(options.out, arm, seed)
    share_start(folder_of(options.out, options.arms[0], seed), folder)
    given = SETTINGS | {"model": options.model, "rounds": options.rounds, "seed": seed, "out": str(folder)} | ARMS[arm]
    if "loss" in ARMS[arm] and ARMS[arm]["loss"] == "azar":
        given.pop("beta")
    begun = time.perf_counter()
    loop.run(build_checked(AlignConfig, given), Console(quiet=True))
    took = folder / "seconds.json"
    if not took.exists():
        took.write_text(json.dumps(time.perf_counter() - begun))


def course(folder: Path, rounds: int, figure: str) -> list[float]:
    """A figure of the start and of each round, on the test questions."""
    places = ["start", *(f"round-{number}" for number in range(1, rounds + 1))]
    metas = [read_meta(folder / place / "evaluation.jsonl") or {} for place in places]
    return [meta["summary"][figure]["value"] for meta in metas]


def line(arm: str, options: argparse.Namespace) -> list[str]:
    """Means over the seeds, with the 95 % bootstrap interval over seeds where there are several."""
    folders = [folder_of(options.out, arm, seed) for seed in range(options.seeds)]
    sampled = [course(folder, options.rounds, "sampled") for folder in folders]
    greedy, judge = ([course(f, options.rounds, name)[-1] for f in folders] for name in ("greedy", "judge_accuracy"))
    means = [fmean(values) for values in zip(*sampled, strict=True)]
    best = max(range(len(means)), key=lambda place: means[place])
    seconds = [json.loads((folder / "seconds.json").read_text()) for folder in folders]
    third = _with_range([values[3] for values in sampled]) if options.rounds >= 3 else ""
    shown = [f"{means[0]:.3f}", third, _with_range([values[-1] for values in sampled]), f"{means[best]:.3f} ({best})"]
    return [arm, str(len(folders)), *shown, _with_range(greedy), _with_range(judge), f"{fmean(seconds):.0f}"]


def _with_range(values: Sequence[float]) -> str:
    found = interval_of(values)
    bounds = f" [{found['low']:.3f}, {found['high']:.3f}]" if len(values) > 1 else ""
    return f"{found['value']:.3f}{bounds}"


def main(words: Sequence[str] | None = None) -> int:
    """Runs what is missing, then prints a Markdown table."""
    options = _options(words)
    for seed in range(options.seeds):
        for arm in options.arms:
            run_arm(arm, seed, options)
            print(f"seed {seed}: {arm}", file=sys.stderr, flush=True)
    print(table(HEADER, [line(arm, options) for arm in options.arms]))
    return 0


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.arms", description="Arms of the loop, side by side.")
    parser.add_argument("--model", default="lab", help="lab, lab-weak (default: lab)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", type=_arms, default=list(ARMS), help=f"some of: {'; '.join(ARMS)} (separated by ;)")
    parser.add_argument("--out", type=Path, default=Path("runs/arms"), help="folder of the runs")
    return parser.parse_args(words)


def _arms(text: str) -> list[str]:
    names = [name.strip() for name in text.split(";")]
    unknown = [name for name in names if name not in ARMS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}; there are {'; '.join(ARMS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
