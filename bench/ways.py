"""What is compared: ways to do the same work, each a function that loads what it needs and returns what is timed.

    run = WAYS["padded batches"](place, work)       # loads the model
    run(0)                                          # Turn(seconds=..., units=...)

Every kind of work is a module with a dataclass of its sizes and a dict WAYS of ways to do it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch

Result = TypeVar("Result")
to_close = ExitStack()
"""What a way has to close when its process ends."""


class Unavailable(Exception):
    """A way that cannot run here; its text is the reason, which the table shows."""


@dataclass(frozen=True)
class Place:
    """Where the work is done, and on which model: `folder` holds weights and tokenizer."""

    folder: str
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as PyTorch has it."""
        return getattr(torch, self.dtype)


class Turn(NamedTuple):
    """One repetition. `units` is what the rate counts (scores, tokens, pairs, prompts).

    `results` are figures on which all ways must agree; ways that draw at random give the `lengths` of their sequences
    instead. `flops` is the least that the work needs, the same for all ways. `peak_bytes` is set by a way whose work is
    done by another process.
    """

    seconds: float
    units: float
    results: tuple[float, ...] = ()
    lengths: tuple[int, ...] = ()
    flops: float = 0.0
    peak_bytes: int = 0


Run = Callable[[int], Turn]
"""Does the work once; the number of the turn seeds what is drawn."""
Way = Callable[[Place, Any], Run]


def clock(place: Place, work: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds of wall time until the device is done, and the result."""
    synchronise(place.device)
    start = time.perf_counter()
    result = work()
    synchronise(place.device)
    return time.perf_counter() - start, result


def synchronise(device: str) -> None:
    """Waits for a GPU to finish what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def counted(number: int, thing: str) -> str:
    """`1 prompt`, `2 prompts`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
