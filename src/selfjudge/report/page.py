"""The sections put into the template, and the file written as a whole.

write_report(Path("runs/mine"), Path("report.html"))
"""

from __future__ import annotations

import os
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from selfjudge.errors import StepError
from selfjudge.report import accuracy, drift, judging, overview, scores, training
from selfjudge.report.blocks import Section
from selfjudge.report.loading import Run, read_run, unfinished
from selfjudge.report.observations import observe_run
from selfjudge.report.prompts import embedded, prompt_table


def write_report(folder: Path, out: Path) -> Path:
    """Reads the run in `folder` and writes the page to `out`; a kill leaves the old file or the new one."""
    page = render(read_run(folder))
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


def render(run: Run) -> str:
    """The page; everything that comes from the run's files is escaped."""
    environment = Environment(
        loader=PackageLoader("selfjudge.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    table = prompt_table(run)
    return environment.get_template("template.html").render(
        title=_title(run),
        subtitle=_subtitle(run),
        incomplete=any(unfinished(arm) for arm in run.arms),
        sections=sections(run),
        table=table,
        shown=len(table["rows"]),
        categories=sorted({row[3] for row in table["rows"] if row[3]}),
        rounds=sorted({row[1] for row in table["rows"]}),
        known=any(row[5] is not None for row in table["rows"]),
        embedded=Markup(embedded(table)),
    )


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


def _title(run: Run) -> str:
    """The model's own name, without the folders that it lies in."""
    model = Path(str(run.first.config.get("model", run.folder))).name
    return f"{model} judged by {run.first.config.get('judge')}" if run.first.is_control else f"{model} as its own judge"


def _subtitle(run: Run) -> str:
    names = ", ".join(arm.name for arm in run.arms)
    arms = f"{len(run.arms)} arms ({names})" if run.several else f"judge {names}"
    rounds = f"{run.rounds} round" + ("" if run.rounds == 1 else "s")
    return f"{rounds}, {arms}, loss {run.first.config.get('loss')}, prompts {run.first.config.get('prompts')}"
