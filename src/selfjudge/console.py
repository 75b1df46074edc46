"""What a person sees while a command runs: progress with rate and time left on stderr, a table at the end."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

ROW = 4
"""Longer lists of numbers are no row of a matrix to look at."""


@dataclass(frozen=True)
class Console:
    """`quiet` silences progress and remarks; errors and results are never silenced."""

    quiet: bool = False

    def say(self, text: str) -> None:
        """A remark, on stderr."""
        from tqdm import tqdm

        if not self.quiet:
            tqdm.write(text, file=sys.stderr)

    @contextmanager
    def progress(self, label: str, total: int, done: int = 0, unit: str = "row") -> Generator[Any]:
        """A progress bar; `done` units come from an earlier run and do not count into the rate."""
        from tqdm import tqdm

        interval = 0.2 if sys.stderr.isatty() else 15.0
        bar = tqdm(
            desc=label, total=total, initial=done, unit=unit, disable=self.quiet, file=sys.stderr, mininterval=interval
        )
        with bar:
            yield bar


def table(summary: dict[str, Any], indent: str = "") -> str:
    """A summary as aligned lines, nested objects indented; a figure with its interval stands on one line.

    Lists are left out, for the file and `--json`, but for lists of a few numbers: the rows of a matrix.
    """
    shown: dict[str, Any] = {key: value for key, value in summary.items() if _is_shown(value)}
    width = max((len(key) for key, value in shown.items() if not _nested(value)), default=0)
    lines: list[str] = []
    for key, value in shown.items():
        if _nested(value):
            lines += [f"{indent}{key}", table(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key:<{width}}  {_row(value) if isinstance(value, list) else _cell(value)}")
    return "\n".join(lines)


def _is_shown(value: Any) -> bool:
    if not isinstance(value, list):
        return True
    numbers = cast("list[Any]", value)
    return 0 < len(numbers) <= ROW and all(number is None or isinstance(number, float) for number in numbers)


def _row(value: list[Any]) -> str:
    return "  ".join("  -  " if number is None else f"{number:.3f}" for number in value)


def _nested(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and not set(value) >= {"value", "low", "high"}


def _cell(value: Any) -> str:
    if isinstance(value, dict) and value:
        numbers = ("nan" if value[name] is None else f"{value[name]:.3f}" for name in ("value", "low", "high"))
        strict = f", strict {value['strict']:.3f}" if value.get("strict") is not None else ""
        return "{} [{}, {}]".format(*numbers) + strict
    return f"{value:.4g}" if isinstance(value, float) else str(value)
