"""All figures of the runs over the same rows side by side; matrices as shaded tables; what ran, as commands."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from selfjudge.config import BenchConfig, flag
from selfjudge.report.bench_figures import figure_rows, joined, matrices, remarks
from selfjudge.report.bench_runs import Bench, BenchRun, Group
from selfjudge.report.blocks import Block, Cell, Facts, Section, Table, Text, percent

SIDE_BY_SIDE = 8
"""Runs in one table of figures; more go into further tables."""
MATRIX = (
    "Rows: the style of the right response; columns: that of the wrong one. Below the diagonal the right response is "
    "the fancier one (easy), above it the wrong one (hard)."
)


def figures(bench: Bench) -> Section:
    """One table for each group of runs."""
    blocks = [block for group in bench.groups for block in _group(group)]
    return Section("figures", "All figures", blocks)


def _group(group: Group) -> list[Block]:
    done = group.done
    if not done:
        return [Text(f"No figures of {group.label} yet: no run is finished.", "gap")]
    parts = [done[start : start + SIDE_BY_SIDE] for start in range(0, len(done), SIDE_BY_SIDE)]
    return [*_remarks(group.label, done), *(_figure_table(group.label, runs) for runs in parts), *_matrices(done)]


def _remarks(label: str, runs: Sequence[BenchRun]) -> list[Block]:
    """What is missing or otherwise to be known of the figures, said once where it is the same for all."""
    saying: dict[str, list[str]] = {}
    for run in runs:
        for line in remarks(run.figures):
            saying.setdefault(line, []).append(run.name)
    common = [line for line, names in saying.items() if len(names) == len(runs)]
    own = [f"{', '.join(names)}: {line}" for line, names in saying.items() if len(names) < len(runs)]
    return [Text(f"{label}: {'; '.join([*common, *own])}.", "gap")] if saying else []


def _figure_table(label: str, runs: Sequence[BenchRun]) -> Table:
    rows = joined([figure_rows(run.figures) for run in runs])
    groups = [(part, [[Cell(row.label), *row.cells, Cell(row.n)] for row in members]) for part, members in rows]
    return Table(f"{label}: figures with 95 % intervals", ["", *(run.name for run in runs), "n"], groups)


def _matrices(runs: Sequence[BenchRun]) -> list[Block]:
    """One shaded table per matrix."""
    found = [(run, title, rows) for run in runs for title, rows in matrices(run.figures)]
    tables = [_matrix(f"{run.name}{title and f', {title}'}: accuracy %", rows) for run, title, rows in found]
    return [Text(MATRIX), *tables] if tables else []


def _matrix(caption: str, rows: dict[str, list[float | None]]) -> Table:
    names = list(rows)
    head = ["right \u2193 wrong \u2192", *names]
    body = [[Cell(name), *(Cell(percent(value), shade=value) for value in cells)] for name, cells in rows.items()]
    return Table(caption, head, [("", body)], beside=True)


# What ran


def runs(bench: Bench) -> Section:
    """Where each run lies, and the command that gives it."""
    rows = [
        (group.label, [[Cell(run.name), Cell(run.unit or "not known"), Cell(command(run))] for run in group.runs])
        for group in bench.groups
    ]
    table = Table("The runs, the unit of their scores and their commands", ["", "Unit", "Command"], rows, prose=True)
    return Section("ran", "What ran", [Facts(_facts(bench)), table])


def _facts(bench: Bench) -> list[tuple[str, str]]:
    versions = dict.fromkeys(", ".join(f"{name} {one}" for name, one in run.versions.items()) for run in bench.runs)
    return [("Folder", str(bench.folder)), ("Versions", "; ".join(filter(None, versions)))]


def command(run: BenchRun) -> str:
    """The command line that gives the run's options; those at their defaults are left out."""
    names = ["model", "judge", "benchmark", *(name for name in run.config if name not in ("judge", "benchmark"))]
    shown = [name for name in dict.fromkeys(names) if _is_set(run.config, name)]
    return " ".join(["selfjudge bench", *(_option(name, run.config[name]) for name in shown)])


def _is_set(config: dict[str, Any], name: str) -> bool:
    field = BenchConfig.model_fields.get(name)
    return name in config and field is not None and (name == "judge" or config[name] != field.default)


def _option(name: str, value: Any) -> str:
    return flag(name) if value is True else shlex.join([flag(name), str(value)])
