"""The folder of a run, or of a demo with several arms, as plain values; nothing is computed here.

>>> run = read_run(Path("demo"))
>>> [arm.name for arm in run.arms], run.arms[0].rounds[1].steps["scored"].state
(['yes-no', 'oracle', 'random'], 'done')
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, cast

from selfjudge.errors import DataError
from selfjudge.readers import parse_json
from selfjudge.store import Row, read_meta
from selfjudge.values import RowError

STEPS = ("samples", "scored", "selected", "training", "evaluation")
ARM_ORDER = ("yes-no", "oracle", "random")
CONTROL_JUDGES = ("oracle", "random")


@dataclass(frozen=True)
class StepFile:
    """One file of rows; `summary` is empty until the step is done."""

    path: Path
    state: Literal["done", "unfinished", "missing"]
    summary: dict[str, Any]

    def rows(self) -> Iterator[Row]:
        """The whole rows, one at a time; a torn last line of an unfinished step is left out."""
        if not self.path.exists():
            return
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.endswith(b"\n"):
                    yield _row(self.path, number, line)

    def finished_rows(self) -> Iterator[Row]:
        """The rows of a finished step, none of any other: a part of the rows would give other means."""
        return self.rows() if self.state == "done" else iter(())


@dataclass(frozen=True)
class Round:
    """One round; number 0 is the model before training, of which there is only an evaluation."""

    number: int
    steps: dict[str, StepFile]
    alarms: dict[str, str] = field(default_factory=dict[str, str])
    """What the run warned of after the round: the alarm's name and its words."""

    @property
    def label(self) -> str:
        return f"round {self.number}" if self.number else "start"


@dataclass(frozen=True)
class Arm:
    """One run of the loop; `rounds` begins with the start and has every planned round, begun or not."""

    name: str
    folder: Path
    config: dict[str, Any]
    versions: dict[str, str]
    rounds: tuple[Round, ...]
    stopped: str | None = None
    """Why the run ended before its last round, where an alarm did that."""

    @property
    def is_control(self) -> bool:
        """True when the judge that picks the pairs is not the model."""
        return self.config.get("judge") in CONTROL_JUDGES


@dataclass(frozen=True)
class Run:
    """What one report is about."""

    folder: Path
    arms: tuple[Arm, ...]

    @property
    def first(self) -> Arm:
        """Whose options stand for all but the judge."""
        return self.arms[0]

    @property
    def several(self) -> bool:
        """True when arms are compared."""
        return len(self.arms) > 1

    def label(self, arm: Arm) -> str:
        """The arm's name where there are several, else nothing."""
        return arm.name if self.several else ""

    @property
    def rounds(self) -> int:
        """Of the arm that has most."""
        return max(len(arm.rounds) for arm in self.arms) - 1


def find_runs(folder: Path) -> list[Path]:
    """The folder itself, or those one below, that hold an align run."""
    return [folder] if (folder / "run.json").is_file() else sorted(path.parent for path in folder.glob("*/run.json"))


def read_run(folder: Path) -> Run:
    """The run in `folder`, or those in the folders one below. Raises DataError where there is none."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the --out folder of selfjudge align, demo or bench")
    found = find_runs(folder)
    if not found:
        raise DataError(
            f"{folder}: not a run (no run.json in it or in a folder just below, no results of selfjudge bench in it or "
            "below); give the --out folder of selfjudge align, demo or bench"
        )
    arms = [_read_arm(path, path.name if path != folder else None) for path in found]
    return Run(folder, tuple(sorted(arms, key=lambda arm: (_place(arm.name), arm.name))))


def _place(name: str) -> int:
    return ARM_ORDER.index(name) if name in ARM_ORDER else len(ARM_ORDER)


def _read_arm(folder: Path, name: str | None) -> Arm:
    run = _read_run_file(folder / "run.json")
    config = run["config"]
    begun = [_number(path) for path in folder.glob("round-*") if path.is_dir()]
    stopped = run.get("stopped") or {}
    ended = max(begun, default=0) <= stopped.get("round", -1)  # else the run went on
    total = max([0 if ended else int(config.get("rounds", 0)), *begun])
    start = Round(0, {"evaluation": read_step(folder / "start" / "evaluation.jsonl")})
    rounds = (start, *(_read_round(folder, number) for number in range(1, total + 1)))
    label = name or str(config.get("judge", folder.name))
    return Arm(label, folder, config, run.get("versions", {}), rounds, stopped["words"] if ended else None)


def _read_run_file(path: Path) -> dict[str, Any]:
    run = _read_object(path)
    if not isinstance(run.get("config"), dict):
        raise DataError(f"{path}: not written by selfjudge align (no options under `config`); give a run's folder")
    return run


def _read_object(path: Path) -> dict[str, Any]:
    """Of anything but an object there is nothing to read: an empty one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: damaged ({error}); the command that made the run writes it again") from None
    return cast(dict[str, Any], found) if isinstance(found, dict) else {}


def _number(path: Path) -> int:
    digits = path.name.removeprefix("round-")
    return int(digits) if digits.isdecimal() else 0


def _read_round(folder: Path, number: int) -> Round:
    place = folder / f"round-{number}"
    recorded = place / "alarms.json"
    alarms = _read_object(recorded).get("alarms", {}) if recorded.exists() else {}
    return Round(number, {step: read_step(place / f"{step}.jsonl") for step in STEPS}, alarms)


def read_step(path: Path) -> StepFile:
    """The state of a step's file; one that was shortened after the step was done is unfinished again."""
    meta = read_meta(path)
    if meta is None or not path.exists():
        return StepFile(path, "missing", {})
    if meta["done"] and meta["bytes"] == path.stat().st_size:
        return StepFile(path, "done", meta["summary"])
    return StepFile(path, "unfinished", {})


def _row(path: Path, number: int, line: bytes) -> Row:
    try:
        return cast(Row, parse_json(line.decode("utf-8")))
    except (UnicodeDecodeError, RowError) as error:
        raise DataError.at(str(path), number, str(error)) from None


def unfinished(arm: Arm) -> list[str]:
    """A line for each round that is not complete: the step it stopped at."""
    lines = [(item.label, _stopped_at(item)) for item in arm.rounds]
    return [f"{label} {where}" for label, where in lines if where]


def _stopped_at(item: Round) -> str:
    if all(step.state == "missing" for step in item.steps.values()):
        return "has not begun" if item.number else "has not been evaluated"
    for name, step in item.steps.items():
        if step.state != "done":
            rows = sum(1 for _ in step.rows())
            return f"stopped at its {name}" + (f" ({rows} rows are there)" if rows else "")
    return ""


def file_dates(run: Run) -> tuple[datetime, datetime]:
    """When the oldest and the newest file of the run were written, UTC."""
    paths = [arm.folder / "run.json" for arm in run.arms]
    paths += [step.path for arm in run.arms for item in arm.rounds for step in item.steps.values()]
    times = [path.stat().st_mtime for path in paths if path.exists()]
    first, last = (datetime.fromtimestamp(time, timezone.utc) for time in (min(times), max(times)))
    return first, last
