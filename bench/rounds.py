"""A whole round as one command: sample, judge, select, train; `selfjudge align` against the usual pieces.

The process is started anew in every turn, so loading is part of the time on both sides. `align` cannot leave out its
evaluation: here it answers and judges one prompt, before and after, and writes its report.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import models
from bench.machine import LIMIT_WAY
from bench.models import SHAPES
from bench.peer_round import CATEGORY
from bench.ways import Place, Run, Turn, Way

PIECES = "generate, reference scoring, TRL tuned"
OURS = "selfjudge align"
OURS_IN_PLACE = "selfjudge align --in-place"


@dataclass(frozen=True)
class Round:
    """Sizes; every response has `new_tokens` tokens. `batch_size` prompts are one optimiser step."""

    shape: str
    prompts: int
    prompt_tokens: int
    new_tokens: int
    num_responses: int = 4
    batch_size: int = 4


def write_prompts(work: Round, turn: int, folder: Path) -> None:
    """`prompts.jsonl`, and `benchmark.jsonl` with the one row that `align` evaluates on."""
    numbers, size = random.Random(turn), SHAPES[work.shape].vocab_size
    rows = [
        {"id": str(number), "prompt": models.words(work.prompt_tokens, numbers, size), "category": CATEGORY}
        for number in range(work.prompts)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "benchmark.jsonl").write_text(json.dumps(rows[0] | {"reference": models.YES}) + "\n")


def ours(place: Place, work: Round) -> Run:
    """One command, everything at its default but what the comparison fixes."""
    return _commands(place, work, lambda folder: _align(place, work, folder))


def ours_in_place(place: Place, work: Round) -> Run:
    """The judge's question as the next turn: another score, from the same responses."""
    return _commands(place, work, lambda folder: [*_align(place, work, folder), "--in-place"])


def _align(place: Place, work: Round, folder: Path) -> list[str]:
    options: dict[str, object] = {
        "model": place.folder,
        "device": place.device,
        "dtype": place.dtype,
        "threads": place.threads,
        "prompts": folder / "prompts.jsonl",
        "benchmark": folder / "benchmark.jsonl",
        "out": folder / "run",
        "rounds": 1,
        "num-responses": work.num_responses,
        "eval-samples": 1,
        "max-new-tokens": work.new_tokens,
        "batch-size": work.batch_size,
        "validation": 0,
        "save-steps": 0,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return ["selfjudge.cli", "align", *words, "--keep-unfinished", "--quiet"]


def pieces(place: Place, work: Round) -> Run:
    """All prompts in batches of 16, as many as fit comfortably on either side."""
    options = {
        "model": place.folder,
        "device": place.device,
        "dtype": place.dtype,
        "threads": place.threads,
        "num-responses": work.num_responses,
        "new-tokens": work.new_tokens,
        "batch": 16,
        "batch-size": work.batch_size,
    }

    def command(folder: Path) -> list[str]:
        files = {"prompts": folder / "prompts.jsonl", "out": folder / "run"}
        return [
            "bench.peer_round",
            *(w for name, value in (options | files).items() for w in (f"--{name}", str(value))),
        ]

    return _commands(place, work, command)


def _commands(place: Place, work: Round, command: Callable[[Path], list[str]]) -> Run:
    def run(turn: int) -> Turn:
        with tempfile.TemporaryDirectory(prefix="bench-round-") as name:
            folder = Path(name)
            write_prompts(work, turn, folder)
            seconds, peak = run_command([sys.executable, "-m", *command(folder)], place)
            return Turn(seconds, work.prompts, peak_bytes=peak)

    return run


def run_command(words: list[str], place: Place) -> tuple[float, int]:
    """Wall seconds and peak memory (ru_maxrss) of a command; its output is shown when it fails."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": str(place.threads)}
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(words, env=environment, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        if process.returncode:
            output.seek(0)
            raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}:\n{output.read().decode()}")
    return seconds, usage.ru_maxrss << 10


WAYS: dict[str, Way] = {PIECES: pieces, OURS: ours, OURS_IN_PLACE: ours_in_place, **LIMIT_WAY}
