"""Fixtures that several test modules use."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real benchmark files: $SELFJUDGE_SHARED/data, or ../shared/data beside the repository."""
    default = Path(__file__).parents[2] / "shared"
    folder = Path(os.environ.get("SELFJUDGE_SHARED", default)) / "data"
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set SELFJUDGE_SHARED to the folder that holds data/")
    return folder


@pytest.fixture(scope="session")
def child_env() -> dict[str, str]:
    """The environment of a child process that imports the package from this checkout."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
