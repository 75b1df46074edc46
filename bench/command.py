"""Compares speed and memory with the usual ways, and writes Markdown.

python -m bench --small                     # under three minutes
python -m bench --out docs/speed.md         # everything, between the page's markers
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench import machine, models, shares, suites, table
from bench.comparison import BenchError, Case, compare
from bench.models import SHAPES
from bench.suites import KINDS, Suite
from bench.table import Compared
from bench.ways import Place


def main(words: Sequence[str] | None = None) -> int:
    """Runs the suite; 1 where a comparison could not be made."""
    options = _options(words)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before any child starts
    on_gpu = torch.cuda.is_available()
    place = Place("", "cuda" if on_gpu else "cpu", "bfloat16" if on_gpu else "float32", options.threads)
    suite = suites.small() if options.small else suites.gpu() if on_gpu else suites.full()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        return run(suite, options.only, replace(place, folder=folder), options.out)


def run(suite: Suite, kinds: Sequence[str], place: Place, out: Path | None) -> int:
    """Makes the comparisons and writes after each, so that nothing is lost; model folders go below the place's."""
    described = _apart(machine.describe, place)
    head = table.machine_part(described, _apart(machine.limits, place, SHAPES[suite.machine_shape]))
    print(head, flush=True)
    everything: list[Compared] = []
    for case in suites.chosen(suite, kinds):
        everything.append(_compared(case, place, suite.turns))
        print(table.case_part(everything[-1]), flush=True)
        _write(out, [head, *_summary(everything), *map(table.case_part, everything)])
    summary = [*_summary(everything), *_shares(suite, kinds, place)]
    print("\n".join(summary))
    _write(out, [head, *summary, *map(table.case_part, everything)])
    return int(any(compared.failure for compared in everything))


def _write(out: Path | None, parts: Sequence[str]) -> None:
    if out is not None:
        table.put_into(out, "\n".join(parts))


def _summary(everything: Sequence[Compared]) -> list[str]:
    growth = table.growth_part(everything)
    return [table.bars_part(everything), *([growth] if growth else [])]


def _shares(suite: Suite, kinds: Sequence[str], place: Place) -> list[str]:
    """Where the time goes in the suite's scoring of the model whose products were measured."""
    cases = [case for case in suite.cases["scoring"] if "scoring" in kinds and case.shape == suite.machine_shape]
    return [
        table.shares_part(case.title, _apart(shares.shares, _with_model(case, place), case.work)) for case in cases[:1]
    ]


def _compared(case: Case, place: Place, turns: int) -> Compared:
    try:
        return Compared(case, compare(case, _with_model(case, place), turns))
    except BenchError as error:
        print(f"{case.title}: {error}", file=sys.stderr)
        return Compared(case, {}, str(error))


def _with_model(case: Case, place: Place) -> Place:
    """The place with the folder of the case's model, which is made once."""
    folder = Path(place.folder) / f"{case.shape}-{case.mean_response:g}".replace(", ", "-")
    here = replace(place, folder=str(folder))
    if not folder.exists():
        _apart(models.save, SHAPES[case.shape], here, case.mean_response)
    return here


def _apart(function: Any, *arguments: Any) -> Any:
    """A call in a process of its own, whose memory is gone afterwards."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Speed and memory against the usual ways.")
    parser.add_argument("--small", action="store_true", help="the 18M model only, under three minutes")
    parser.add_argument("--only", type=_kinds, default=KINDS, help=f"some of {','.join(KINDS)} (default: all)")
    parser.add_argument("--out", type=Path, help="page whose tables are replaced (default: print only)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each way (default: 1)")
    return parser.parse_args(words)


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(text.split(","))
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}; there are {', '.join(KINDS)}")
    return kinds
