"""A run's folder -> its report."""

from __future__ import annotations

from selfjudge.config import ReportConfig
from selfjudge.console import Console
from selfjudge.steps import Summary

__all__ = ["ReportConfig", "run"]


def run(config: ReportConfig, console: Console) -> Summary:
    """Writes the HTML file."""
    return {"report": "-"}
