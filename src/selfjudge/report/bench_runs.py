"""The results of `selfjudge bench` in a folder and those below it, as plain values; nothing is computed here.

    >>> found = read_bench(Path("runs/bench"))
    >>> [(group.label, [run.name for run in group.runs]) for group in found.groups]
    [('rewardbench', ['lab-yes-no', 'lab-rating', 'random'])]

Runs stand in one group when they judged the same rows: only their figures can be compared.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, cast

from selfjudge.errors import DataError
from selfjudge.report.bench_figures import Path as FigurePath
from selfjudge.report.bench_figures import estimate_at, main_path
from selfjudge.report.loading import StepFile, read_step
from selfjudge.store import read_meta

ROWS, RESULTS = "rows.jsonl", "results.json"
DEPTH = 6
"""Folders between the given one and a run at most."""


@dataclass(frozen=True)
class BenchRun:
    """One judge on one benchmark; `figures` is empty where `problem` says why."""

    name: str
    folder: Path
    config: dict[str, Any]
    benchmark: str
    rows_key: tuple[str, int]
    """Digest of the rows and the --limit: the same for runs over the same rows."""
    unit: str
    judged_by: tuple[str, ...]
    figures: dict[str, Any]
    versions: dict[str, str]
    rows: StepFile
    problem: str = ""

    @property
    def model(self) -> str:
        """Who judges, by the last part of the path; nobody for the control judges."""
        return ", ".join(Path(name).name for name in self.judged_by)

    @property
    def judge(self) -> str:
        """The judge's name with what changes its scores."""
        extras = [text for name, text in _JUDGE_EXTRAS.items() if self.config.get(name)]
        return ", ".join([str(self.config.get("judge")), *extras])


_JUDGE_EXTRAS = {"in_place": "in place", "questions": "own questions", "thinking": "thinking"}


@dataclass(frozen=True)
class Group:
    """Runs over the same rows, best first, those without figures last."""

    label: str
    """The benchmark, with what tells its rows apart from those of another group."""
    benchmark: str
    runs: tuple[BenchRun, ...]

    @property
    def main(self) -> FigurePath:
        """The figure by which they are ranked."""
        return main_path([run.figures for run in self.runs])

    @property
    def done(self) -> list[BenchRun]:
        """The runs that have figures."""
        return [run for run in self.runs if run.figures]


@dataclass(frozen=True)
class Bench:
    """What one report is about."""

    folder: Path
    groups: tuple[Group, ...]

    @property
    def runs(self) -> list[BenchRun]:
        """In the order of the leaderboard."""
        return [run for group in self.groups for run in group.runs]


def find_bench(folder: Path) -> list[Path]:
    """The folders, `folder` itself or at most DEPTH below, that hold rows or results of selfjudge bench."""
    names = (Path(ROWS).with_suffix(".meta.json").name, RESULTS)
    patterns = ["*/" * depth + name for depth in range(DEPTH + 1) for name in names]
    return sorted(path for path in {found.parent for one in patterns for found in folder.glob(one)} if _is_bench(path))


def _is_bench(folder: Path) -> bool:
    """By the step that the meta of the rows names; without a meta, by what the results hold."""
    meta = read_meta(folder / ROWS)
    if meta is not None:
        return meta.get("step") == "bench"
    results = _read_json(folder / RESULTS)
    return isinstance(results, dict) and {"figures", "judged_by"} <= set(cast(dict[str, Any], results))


def read_bench(folder: Path) -> Bench:
    """All runs in `folder`, by group. Raises DataError for damaged results."""
    runs = sorted((_read_one(path, folder) for path in find_bench(folder)), key=_group_key)
    groups = [list(members) for _, members in groupby(runs, key=_group_key)]
    named = [Group(_label(members, groups), _benchmark(members), _ranked(members)) for members in groups]
    return Bench(folder, tuple(sorted(named, key=lambda group: group.label)))


def _group_key(run: BenchRun) -> tuple[Any, ...]:
    return (*run.rows_key, "") if run.rows_key[0] else (*run.rows_key, run.benchmark)


def _ranked(members: list[BenchRun]) -> tuple[BenchRun, ...]:
    path = main_path([run.figures for run in members])

    def place(run: BenchRun) -> tuple[bool, float, str]:
        value = estimate_at(run.figures, path).value
        return (value is None, -(value or 0.0), run.name)

    return tuple(sorted(members, key=place))


def _label(members: list[BenchRun], groups: list[list[BenchRun]]) -> str:
    """The benchmark's name; with what tells it apart where other rows were judged under the same name."""
    name, (digest, limit) = _benchmark(members), members[0].rows_key
    namesakes = [group for group in groups if _benchmark(group) == name]
    if len(namesakes) == 1:
        return name
    same_limit = sum(group[0].rows_key[1] == limit for group in namesakes) > 1
    part = f"{limit} rows" if limit else "all rows"
    return f"{name}, {part}" + (f" ({digest[:8] or 'not there'})" if same_limit else "")


def _benchmark(members: list[BenchRun]) -> str:
    """As a run with results names it: the meta of an unfinished one only knows where its rows came from."""
    return next((run.benchmark for run in members if run.figures), members[0].benchmark)


def _read_one(folder: Path, root: Path) -> BenchRun:
    meta = read_meta(folder / ROWS) or {}
    rows = read_step(folder / ROWS)
    results = _read_results(folder / RESULTS) if rows.state != "unfinished" else {}
    config: dict[str, Any] = results.get("config") or meta.get("config") or {}
    source: dict[str, str] = meta.get("inputs", {}).get("benchmark", {})
    judged_by = results.get("judged_by", [config["model"]] if config.get("model") else [])
    return BenchRun(
        name=folder.name if folder == root else str(folder.relative_to(root)),
        folder=folder,
        config=config,
        benchmark=str(config.get("benchmark") or Path(source.get("name", "unknown")).name),
        rows_key=(source.get("sha256", ""), int(config.get("limit") or 0)),
        unit=str(results.get("unit", "")),
        judged_by=tuple(judged_by),
        figures=results.get("figures", {}),
        versions=results.get("versions") or meta.get("versions", {}),
        rows=rows,
        problem=_problem(rows, results),
    )


def _problem(rows: StepFile, results: dict[str, Any]) -> str:
    if results:
        return ""
    if rows.state == "done":
        return f"unfinished: all rows are judged, but there is no {RESULTS}; the same command writes it"
    count = sum(1 for _ in rows.rows())
    judged = f"{count} row is judged" if count == 1 else f"{count} rows are judged"
    return f"unfinished: {judged}; the same command goes on from there"


def _read_results(path: Path) -> dict[str, Any]:
    """Nothing where there is no file."""
    if not path.is_file():
        return {}
    results = _read_json(path)
    if not isinstance(results, dict):
        raise _not_ours(path)
    found = cast(dict[str, Any], results)
    if not (isinstance(found.get("config"), dict) and isinstance(found.get("figures"), dict)):
        raise _not_ours(path)
    return found


def _not_ours(path: Path) -> DataError:
    return DataError(
        f"{path}: not written by selfjudge bench (no `config` and `figures`); the command of the run writes it again"
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: damaged ({error}); the command that made the run writes it again") from None
