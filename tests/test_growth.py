"""Ten times the prompts take no more memory: `bench/growth.py` in small, each command in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FEW, MANY = 1_000, 10_000
MOST = 5.0
"""MiB that the 9,000 rows more may take: ids and the numbers that intervals need; rows in lists take 10 to 140."""
PROGRAM = f"""
import json
from bench.growth import measure_steps
found = [measure_steps(size) for size in ({FEW}, {MANY})]
print(json.dumps({{step: found[1][step].peak - found[0][step].peak for step in found[0]}}))
"""


@pytest.fixture(scope="module")
def growth() -> dict[str, float]:
    """Step -> MiB. In a small process: a child counts the memory of the one that started it as its own peak."""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("step", ["sample", "judge", "select", "evaluate"])
def test_memory_does_not_grow_with_the_rows(growth: dict[str, float], step: str) -> None:
    assert growth[step] < MOST
