"""Measurements as Markdown, and the place in a page where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from bench.comparison import Bar, Case, Measured
from bench.machine import LIMIT

BEGIN, STOP = "<!-- bench: begin -->", "<!-- bench: end -->"
MEBIBYTE = 1 << 20


class Compared(NamedTuple):
    """A case with what was measured, or with the reason why it could not be (`failure`)."""

    case: Case
    measured: dict[str, Measured]
    failure: str = ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine_part(description: Sequence[str], limits: Sequence[tuple[str, str]]) -> str:
    """What the machine is and can do."""
    lines = "\n".join(f"* {line}" for line in description)
    return f"### The machine\n\n{lines}\n\n{table(('quantity', 'median'), limits)}\n"


def case_part(compared: Compared) -> str:
    """One comparison: its ways in the order of the case."""
    case = compared.case
    if compared.failure:
        return f"### {case.title}\n\nNot measured: {compared.failure}\n"
    header = ("way", "seconds", "range", f"{case.unit}/s", "x peer", "of the limit", "peak MiB", "growth MiB")
    rows = [_row(case, name, compared.measured) for name in case.ways if name != LIMIT]
    return f"### {case.title}\n\n{table(header, rows)}\n{_limit_line(compared)}"


def _row(case: Case, name: str, measured: dict[str, Measured]) -> list[str]:
    way, peer, limit = measured[name], measured[case.peer], measured[LIMIT]
    if way.unavailable:
        return [name, way.unavailable, *[""] * 6]
    seconds = [turn.seconds for turn in way.turns]
    return [
        name,
        f"{way.seconds:.3g}",
        f"{min(seconds):.3g} to {max(seconds):.3g}",
        f"{way.rate:,.3g}" if way.rate < 1000 else f"{way.rate:,.0f}",
        "" if peer.unavailable else f"{way.rate / peer.rate:.2f}",
        f"{way.flops_per_second / limit.rate:.0%}" if way.flops_per_second else "",
        f"{way.peak_bytes / MEBIBYTE:,.0f}",
        f"{way.growth_bytes / MEBIBYTE:,.0f}",
    ]


def _limit_line(compared: Compared) -> str:
    limit = compared.measured[LIMIT]
    rates = [turn.units / turn.seconds / 1e9 for turn in limit.turns]
    return (
        f"\nPeer: {compared.case.peer}. Limit in the same turns: {limit.rate / 1e9:,.0f} GFLOP/s "
        f"({min(rates):,.0f} to {max(rates):,.0f}).\n"
    )


def bars_part(everything: Sequence[Compared]) -> str:
    """What was promised, and whether it holds."""
    rows = [
        [compared.case.title, *_bar(bar, compared)]
        for compared in everything
        for bar in compared.case.bars
        if not compared.failure
    ]
    return f"### What is promised\n\n{table(('work', 'of', 'against', 'promised', 'measured', ''), rows)}\n"


def _bar(bar: Bar, compared: Compared) -> list[str]:
    ours, peer = compared.measured[bar.ours], compared.measured[bar.peer]
    promised = f"{bar.of} x {bar.at_least:g}"
    if ours.unavailable or peer.unavailable:
        return [bar.ours, bar.peer, promised, "", ours.unavailable or peer.unavailable]
    ratio = quotient(bar, ours, peer)
    return [bar.ours, bar.peer, promised, f"{ratio:.3f}", "holds" if ratio >= bar.at_least else "**missed**"]


def quotient(bar: Bar, ours: Measured, peer: Measured) -> float:
    """How many times better ours is: rate, needed operations against the limit's, or memory beyond the model."""
    if bar.of == "memory":
        return peer.growth_bytes / ours.growth_bytes
    return ours.flops_per_second / peer.rate if bar.of == "operations" else ours.rate / peer.rate


def shares_part(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """Where the time of one piece of work goes."""
    return f"### Where the time goes\n\nIn selfjudge, hf: {title}.\n\n{table(('operations', 'of the time'), rows)}\n"


def growth_part(everything: Sequence[Compared]) -> str:
    """How rates grow where a suite repeats the same work with more prompts; empty where it does not."""
    parts: list[str] = []
    for series, members in groupby((c for c in everything if not c.failure), key=lambda c: _series(c.case)):
        grown = list(members)
        if len(grown) > 1:
            parts.append(_growth(series, grown))
    return "\n".join(parts)


def _series(case: Case) -> str:
    sizes: dict[str, Any] = {n: v for n, v in vars(case.work).items() if n not in ("prompts", "prompts_per_step")}
    listed = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in sizes.items())
    return f"{type(case.work).__name__}, {listed}, responses of {case.mean_response:g}"


def _growth(series: str, grown: Sequence[Compared]) -> str:
    sizes = [str(vars(c.case.work).get("prompts") or c.case.work.prompts_per_step) for c in grown]
    names = [n for n in grown[0].case.ways if n != LIMIT and not any(c.measured[n].unavailable for c in grown)]
    rows = [[name, *(f"{c.measured[name].rate:,.3g}" for c in grown)] for name in names]
    header = (f"{grown[0].case.unit}/s", *(f"{size} prompts" for size in sizes))
    return f"### Growth: {series}\n\n{table(header, rows)}\n"


def put_into(page: Path, text: str) -> None:
    """Replaces what stands between the two markers of the page."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, found, after = rest.partition(STOP)
    if not found:
        raise SystemExit(f"{page}: the lines {BEGIN} and {STOP}, between which the tables go, are not there; add them")
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{STOP}{after}")
