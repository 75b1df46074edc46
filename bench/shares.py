"""Where the time of scoring goes, by kind of operation: what is left of the machine's limit."""

from __future__ import annotations

from collections import Counter

import torch
from torch.profiler import ProfilerActivity, profile

from bench.scoring import OURS, WAYS, Scoring
from bench.ways import Place, to_close

KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "aten::matmul"),
    "attention": ("attention", "flash"),
    "norms, rotary embedding, activation": ("mul", "add", "silu", "pow", "mean", "rsqrt", "neg", "sub", "cos", "sin"),
    "copies": ("copy", "cat", "clone", "index", "contiguous", "aten::to", "stack", "embedding"),
}
"""Names of PyTorch's operations, or parts of them, in this order."""
OTHER = "other, and Python"


def shares(place: Place, work: Scoring) -> list[tuple[str, str]]:
    """(kind of operation, share of its time), the largest first; the time is the CPU's, on a GPU the GPU's."""
    torch.set_num_threads(place.threads)
    with to_close:
        run = WAYS[OURS](place, work)
        run(0)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + (place.device != "cpu")]) as found:
            run(1)
    times: Counter[str] = Counter()
    for event in found.key_averages():
        times[kind_of(event.key)] += (
            event.self_cpu_time_total if place.device == "cpu" else event.self_device_time_total
        )
    total = sum(times.values())
    return [(kind, f"{time / total:.0%}") for kind, time in times.most_common()]


def kind_of(name: str) -> str:
    """The first kind that knows the operation."""
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), OTHER)
