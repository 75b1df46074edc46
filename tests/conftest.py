"""Fixtures that several test modules use.

One thread, here and in every child process: more only slow down models this small, and another number of threads sums
in another order, so that results agree to rounding only.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real benchmark files: $SELFJUDGE_SHARED/data, or ../shared/data beside the repository."""
    return _shared("data")


@pytest.fixture(scope="session")
def shared_tokenizers() -> Path:
    """The folder with real tokenizers, beside that of the data."""
    return _shared("tokenizers")


def _shared(name: str) -> Path:
    default = Path(__file__).parents[2] / "shared"
    folder = Path(os.environ.get("SELFJUDGE_SHARED", default)) / name
    if not folder.is_dir():
        pytest.skip(f"{folder} not found; set SELFJUDGE_SHARED to the folder that holds {name}/")
    return folder


@pytest.fixture(scope="session")
def child_env() -> dict[str, str]:
    """The environment of a child process that imports the package from this checkout."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}


ModelFolder = Callable[..., str]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """`model_folder("llama", template=None)`: the folder of a tiny model (see tests/tiny.py), made once."""
    made: dict[Any, str] = {}

    def folder(name: str, template: str | None = tiny.CHATML, seed: int = 0, **changes: Any) -> str:
        key = (name, template, seed, *sorted(changes.items()))
        if key not in made:
            made[key] = tiny.save(tmp_path_factory.mktemp(name), name, template, seed, **changes)
        return made[key]

    return folder
