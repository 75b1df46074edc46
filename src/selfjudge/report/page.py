"""The sections put into the template, and the file written as a whole.

write_report(Path("runs/mine"), Path("report.html"))
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from selfjudge.errors import DataError, StepError
from selfjudge.report import (
    accuracy,
    bench_tables,
    bench_trust,
    drift,
    judging,
    leaderboard,
    overview,
    scores,
    training,
)
from selfjudge.report.bench_items import item_table
from selfjudge.report.bench_runs import Bench, find_bench, read_bench
from selfjudge.report.blocks import Section
from selfjudge.report.loading import Run, find_runs, read_run, unfinished
from selfjudge.report.observations import observe_run
from selfjudge.report.prompts import embedded, prompt_table


def write_report(folder: Path, out: Path) -> Path:
    """Reads what is in `folder` and writes the page to `out`; a kill leaves the old file or the new one."""
    page = _page_of(folder)
    temporary = out.with_name(out.name + ".tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(out)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StepError(f"{out}: cannot be written ({error.strerror}); give another --out") from error
    return out


def _page_of(folder: Path) -> str:
    """By what the folder holds. Raises DataError where that is neither or both."""
    measured = find_bench(folder)
    if not measured:
        return render(read_run(folder))
    aligned = find_runs(folder)
    if aligned:
        raise DataError(
            f"{folder}: holds both an align run ({aligned[0]}) and bench results ({measured[0]}); "
            "give the folder of one of them"
        )
    return render_bench(read_bench(folder))


def render(run: Run) -> str:
    """The page of an align run; everything that comes from the run's files is escaped."""
    table = prompt_table(run)
    return _rendered(
        "run.html",
        table,
        title=_title(run),
        subtitle=_subtitle(run),
        incomplete=any(unfinished(arm) for arm in run.arms),
        sections=sections(run),
        shown=len(table["rows"]),
        categories=sorted({row[3] for row in table["rows"] if row[3]}),
        rounds=sorted({row[1] for row in table["rows"]}),
        known=any(row[5] is not None for row in table["rows"]),
    )


def render_bench(bench: Bench) -> str:
    """The page of benchmark runs; everything that comes from their files is escaped."""
    table = item_table(bench)
    return _rendered(
        "bench.html",
        table,
        title=f"Judges on {_listed([group.benchmark for group in bench.groups])}",
        subtitle=_bench_subtitle(bench),
        incomplete=any(run.problem for run in bench.runs),
        sections=bench_sections(bench),
        shown=len(table["items"]),
        categories=sorted({item[2] for item in table["items"] if item[2]}),
        subsets=sorted({item[3] for item in table["items"] if item[3]}),
    )


def _rendered(template: str, table: dict[str, Any], **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("selfjudge.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(table=table, embedded=Markup(embedded(table)), **values)


def sections(run: Run) -> list[Section]:
    """All but the table of prompts, in the order of the page."""
    seen = observe_run(run)
    return [
        overview.section(run),
        accuracy.section(run),
        judging.section(run),
        scores.section(run, seen),
        drift.section(run),
        training.section(run),
    ]


def bench_sections(bench: Bench) -> list[Section]:
    """All but the single items, in the order of the page."""
    return [
        leaderboard.section(bench),
        bench_tables.figures(bench),
        bench_trust.calibration(bench),
        bench_trust.bias(bench),
        bench_tables.runs(bench),
    ]


def _title(run: Run) -> str:
    """The model's own name, without the folders that it lies in."""
    model = Path(str(run.first.config.get("model", run.folder))).name
    return f"{model} judged by {run.first.config.get('judge')}" if run.first.is_control else f"{model} as its own judge"


def _subtitle(run: Run) -> str:
    names = ", ".join(arm.name for arm in run.arms)
    arms = f"{len(run.arms)} arms ({names})" if run.several else f"judge {names}"
    rounds = f"{run.rounds} round" + ("" if run.rounds == 1 else "s")
    return f"{rounds}, {arms}, loss {run.first.config.get('loss')}, prompts {run.first.config.get('prompts')}"


def _bench_subtitle(bench: Bench) -> str:
    runs = f"{len(bench.runs)} run" + ("" if len(bench.runs) == 1 else "s")
    models = [run.model for run in bench.runs if run.model]
    judges = [str(run.config.get("judge")) for run in bench.runs]
    asked = f", models {_listed(models)}" if models else ""
    return f"{runs}{asked}, judges {_listed(judges)}"


def _listed(names: list[str]) -> str:
    return ", ".join(sorted(set(names)))
