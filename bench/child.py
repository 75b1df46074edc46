"""The process that one way runs in: its own model, its own allocator, its own peak memory.

The parent says when to run; nothing else runs meanwhile.
"""

from __future__ import annotations

import importlib
import os
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from bench.ways import Place, Turn, Unavailable, to_close
from selfjudge.models import quiet_libraries


class Ready(NamedTuple):
    """What was loaded takes `bytes` of memory."""

    bytes: int


class Done(NamedTuple):
    """A turn and the memory in use at its peak."""

    turn: Turn
    peak_bytes: int


def serve(connection: Connection, name: str, place: Place, work: Any) -> None:
    """Loads the way called `name`, then does one turn for each number received, until the parent hangs up."""
    os.dup2(2, 1)  # what libraries print does not belong into the parent's table
    torch.set_num_threads(place.threads)
    os.environ["TQDM_DISABLE"] = "1"
    quiet_libraries()
    with to_close:
        try:
            run = importlib.import_module(type(work).__module__).WAYS[name](place, work)
        except Unavailable as reason:
            connection.send(reason)
            return
        connection.send(Ready(_memory(place.device, "VmRSS")))
        for number in iter(connection.recv, None):
            _forget_peak(place.device)
            turn = run(number)
            connection.send(Done(turn, turn.peak_bytes or _memory(place.device, "VmHWM")))


def _forget_peak(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return
    for folder in _processes():
        (folder / "clear_refs").write_text("5")  # Linux: VmHWM starts again from the memory in use


def _memory(device: str, field: str) -> int:
    """Bytes in use (VmRSS) or at the peak (VmHWM): of process and children, or on a GPU of PyTorch's allocator."""
    if device.startswith("cuda"):
        return torch.cuda.memory_allocated() if field == "VmRSS" else torch.cuda.max_memory_allocated()
    lines = [line for folder in _processes() for line in (folder / "status").read_text().splitlines()]
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def _processes() -> list[Path]:
    own = psutil.Process()
    return [Path("/proc") / str(process.pid) for process in (own, *own.children(recursive=True))]
