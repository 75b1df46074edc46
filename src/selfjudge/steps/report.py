"""A run's folder -> its report."""

from __future__ import annotations

from pathlib import Path

from selfjudge.config import ReportConfig
from selfjudge.console import Console
from selfjudge.report import write_report
from selfjudge.steps import Summary

__all__ = ["ReportConfig", "run"]


def run(config: ReportConfig, console: Console) -> Summary:
    """Writes the HTML file; {"report": its path}."""
    folder = Path(config.run)
    written = write_report(folder, Path(config.out) if config.out else folder / "report.html")
    console.say(f"report: {written}")
    return {"report": str(written)}
