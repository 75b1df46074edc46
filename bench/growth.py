"""Time and memory as the number of prompts grows: `python -m bench.growth` (a few minutes; `1000 10000` for less).

Every command runs in a process of its own, with the backend that has no model, so that what is measured is the way of
the rows. Memory is the peak of the resident set beyond that of the same command on ten rows: what the rows take.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

SIZES = (1_000, 10_000, 100_000)
BASE = 10
"""Rows that take no memory to speak of."""
FAKE = ("--backend", "fake", "--model", "fake")


class Measured(NamedTuple):
    """Of one process: wall and processor time in seconds, peak resident set in MiB."""

    seconds: float
    processor: float
    peak: float


def write_prompts(path: Path, number: int) -> None:
    """Prompts of 20 to 60 words; every one has a reference answer, so that accuracy is computed too."""
    rng = random.Random(number)
    with path.open("w", encoding="utf-8") as file:
        for index in range(number):
            prompt = " ".join(f"word{rng.randrange(1000)}" for _ in range(rng.randint(20, 60)))
            row = {"id": f"prompt-{index}", "prompt": prompt, "category": "chat", "reference": "answer 3"}
            file.write(json.dumps(row) + "\n")


def commands(folder: Path) -> dict[str, list[str]]:
    """Step -> its command line, in the order in which they feed each other."""
    prompts, samples, scored, selected, pairs = (
        str(folder / f"{name}.jsonl") for name in ("prompts", "samples", "scored", "selected", "evaluation")
    )
    return {
        "sample": ["sample", *FAKE, "--prompts", prompts, "--out", samples],
        "judge": ["judge", *FAKE, "--input", samples, "--out", scored],
        "select": ["select", "--input", scored, "--out", selected],
        "evaluate": ["evaluate", *FAKE, "--benchmark", prompts, "--out", pairs],
    }


def measure(arguments: list[str]) -> Measured:
    """Runs a command of selfjudge to its end."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "selfjudge.cli", *arguments, "--quiet"], env=environment)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"selfjudge {' '.join(arguments)} ended with exit code {process.returncode}")
    return Measured(time.perf_counter() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def measure_steps(number: int) -> dict[str, Measured]:
    """All steps on `number` prompts."""
    with tempfile.TemporaryDirectory() as name:
        write_prompts(Path(name) / "prompts.jsonl", number)
        return {step: measure(arguments) for step, arguments in commands(Path(name)).items()}


def main(sizes: list[int]) -> None:
    """Prints a Markdown table; times are without the start of the program, memory without what ten rows take."""
    base = measure_steps(BASE)
    print("| step | rows | seconds | processor s | rows/s | memory, MiB | peak, MiB |\n|---|---|---|---|---|---|---|")
    for size in sizes:
        for step, found in measure_steps(size).items():
            spent = [found.seconds - base[step].seconds, found.processor - base[step].processor]
            figures = f"{spent[0]:.1f} | {spent[1]:.1f} | {size / spent[0]:,.0f}"
            print(
                f"| {step} | {size:,} | {figures} | {found.peak - base[step].peak:.1f} | {found.peak:.0f} |", flush=True
            )


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or list(SIZES))
