"""Running a command in a test and reading what it summed up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfjudge.cli import main
from selfjudge.store import read_meta


def done(*arguments: Any) -> None:
    assert main([str(word) for word in arguments]) == 0


def summary(file: Path) -> dict[str, Any]:
    meta = read_meta(file)
    assert meta is not None
    assert meta["done"]
    return meta["summary"]
