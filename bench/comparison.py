"""One comparison: every way in its own process, one turn each in turns, medians and spread of what they report.

    measured = compare(case, place, turns=3)

A B C A B C, so that a machine that slows down slows all ways alike. The first round warms up and shows whether the ways
agree; it is not counted.
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, NamedTuple

from bench.child import Done, Ready, serve
from bench.ways import Place, Turn, Unavailable

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.2}
"""Nats; a bfloat16 logit near 10 has steps of 0.06."""
STANDARD_ERRORS = 5.0


class BenchError(Exception):
    """A comparison that cannot be made: a way died, or two ways disagree."""


class Bar(NamedTuple):
    """`ours` must have at least `at_least` times the rate of `peer`, or with `of` "memory" use so many times less."""

    ours: str
    peer: str
    at_least: float
    of: str = "rate"


@dataclass(frozen=True)
class Case:
    """`work` on a model of `shape` whose responses end after `mean_response` tokens on average.

    `peer` is the way that the others are compared with. Without `together` each way does its turns before the
    next one is loaded: on a GPU, where the memory may hold only one.
    """

    title: str
    shape: str
    work: Any
    ways: tuple[str, ...]
    peer: str
    unit: str
    mean_response: float
    bars: tuple[Bar, ...] = ()
    together: bool = True


@dataclass
class Measured:
    """All counted turns of a way; `unavailable` says why there are none. `loaded_bytes`: before the first turn."""

    loaded_bytes: int = 0
    turns: list[Turn] = field(default_factory=list[Turn])
    peak_bytes: int = 0
    unavailable: str = ""

    @property
    def seconds(self) -> float:
        """Median over the turns."""
        return statistics.median(turn.seconds for turn in self.turns)

    @property
    def rate(self) -> float:
        """Units per second, median over the turns."""
        return statistics.median(turn.units / turn.seconds for turn in self.turns)

    @property
    def flops_per_second(self) -> float:
        """Needed operations per second, median over the turns."""
        return statistics.median(turn.flops / turn.seconds for turn in self.turns)

    @property
    def growth_bytes(self) -> int:
        """Peak memory beyond the loaded model; a command that is started anew in each turn has nothing loaded."""
        return self.peak_bytes - (0 if self.turns[0].peak_bytes else self.loaded_bytes)


class _Child(NamedTuple):
    name: str
    process: SpawnProcess
    connection: Connection


def compare(case: Case, place: Place, turns: int) -> dict[str, Measured]:
    """What each way of the case measured, in the case's order. Raises BenchError where two ways disagree."""
    groups = [case.ways] if case.together else [(name,) for name in case.ways]
    measured: dict[str, Measured] = {}
    first: dict[str, Turn] = {}
    for names in groups:
        with _started(case, names, place) as children:
            found, warm = _run(children, turns)
        measured |= found
        first |= warm
    check_agreement(case.title, first, TOLERANCE[place.dtype])
    return measured


def _run(children: Sequence[_Child], turns: int) -> tuple[dict[str, Measured], dict[str, Turn]]:
    """The measurements, and the turns of the first round."""
    measured = {child.name: _loaded(_receive(child)) for child in children}
    able = [child for child in children if not measured[child.name].unavailable]
    first = {child.name: _turn(child, 0).turn for child in able}
    for number in range(1, turns + 1):
        for child in able:
            done = _turn(child, number)
            measured[child.name].turns.append(done.turn)
            measured[child.name].peak_bytes = max(measured[child.name].peak_bytes, done.peak_bytes)
    return measured, first


def _loaded(message: Ready | Unavailable) -> Measured:
    return Measured(unavailable=str(message)) if isinstance(message, Unavailable) else Measured(message.bytes)


def _turn(child: _Child, number: int) -> Done:
    child.connection.send(number)
    return _receive(child)


def _receive(child: _Child) -> Any:
    try:
        return child.connection.recv()
    except EOFError:
        child.process.join()
        code = child.process.exitcode
        raise BenchError(f"{child.name} died with exit code {code}; its error stands above") from None


@contextmanager
def _started(case: Case, names: Iterable[str], place: Place) -> Generator[list[_Child]]:
    """The processes of the ways; they load side by side and end with the context."""
    context = multiprocessing.get_context("spawn")
    children: list[_Child] = []
    try:
        for name in names:
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(there, name, place, case.work), daemon=False)
            process.start()
            there.close()
            children.append(_Child(name, process, here))
        yield children
    finally:
        for child in children:
            _end(child)


def _end(child: _Child) -> None:
    if child.process.is_alive():
        with suppress(BrokenPipeError):  # it may end by itself just now
            child.connection.send(None)
    child.process.join(30)
    child.process.kill()


def check_agreement(title: str, turns: dict[str, Turn], tolerance: float) -> None:
    """All figures within `tolerance` of the first way's; lengths of random sequences equal in the mean."""
    _check_figures(title, {name: turn.results for name, turn in turns.items() if turn.results}, tolerance)
    _check_lengths(title, {name: turn.lengths for name, turn in turns.items() if turn.lengths})


def _check_figures(title: str, found: dict[str, tuple[float, ...]], tolerance: float) -> None:
    for name, results in list(found.items())[1:]:
        first, expected = next(iter(found.items()))
        gap = max(abs(a - b) for a, b in zip(results, expected, strict=True))
        if not gap <= tolerance:
            raise BenchError(f"{title}: {name} and {first} differ by {gap:.2g}, more than {tolerance:g}")


def _check_lengths(title: str, found: dict[str, tuple[int, ...]]) -> None:
    for name, lengths in list(found.items())[1:]:
        first, expected = next(iter(found.items()))
        gap = abs(statistics.fmean(lengths) - statistics.fmean(expected))
        allowed = STANDARD_ERRORS * math.hypot(_standard_error(lengths), _standard_error(expected))
        if gap > allowed:
            raise BenchError(
                f"{title}: mean lengths of {name} and {first} differ by {gap:.3g} tokens, chance explains {allowed:.3g}"
            )


def _standard_error(lengths: Sequence[int]) -> float:
    return statistics.stdev(lengths) / math.sqrt(len(lengths)) if len(lengths) > 1 else 0.0
