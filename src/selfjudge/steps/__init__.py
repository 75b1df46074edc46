"""The steps of the loop, each a command of its own: read rows, append rows by key, write the summary last.

    summary = sample.run(config, console)

A step that was killed goes on where it stopped; one that is finished returns its summary; one whose options or input
changed is refused with the difference.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from selfjudge import __version__
from selfjudge.backends import BACKENDS, Backend, BackendOptions
from selfjudge.config import Options
from selfjudge.inputs import Entry
from selfjudge.records import Example
from selfjudge.store import Row, StepMeta, StepOutput, read_meta, read_rows

Summary = dict[str, Any]


class OpenModel:
    """The one model in memory: asking for the same again gives it back, asking for another closes it first."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """`say` gets the backends' remarks."""
        self._say = say
        self._backend: Backend | None = None
        self._key: Any = None

    def get(self, config: Any) -> Backend:
        """The backend for a config with the model options."""
        options = BackendOptions(
            **{name: getattr(config, name) for name in _MODEL_FIELDS if hasattr(config, name)}, say=self._say
        )
        key = (config.backend, config.model, options)
        if self._backend is None or key != self._key:
            self.close()
            self._backend, self._key = BACKENDS[config.backend](config.model, options), key
        return self._backend

    def close(self) -> None:
        """Frees its memory."""
        if self._backend is not None:
            self._backend.close()
        self._backend = None

    def __enter__(self) -> OpenModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_MODEL_FIELDS = (
    "device",
    "dtype",
    "trust_remote_code",
    "threads",
    "thinking",
    "max_length",
    "token_budget",
    "sample_batch",
)


def step_meta(step: str, config: Options, **inputs: Entry) -> StepMeta:
    """What the step's rows are made with."""
    paths = {"input", "prompts", "benchmark"}  # compared by their content instead
    deciding = {name: value for name, value in config.deciding().items() if name not in paths}
    if deciding.get("model"):
        deciding["model"] = model_identity(deciding["model"])
    return StepMeta(step, deciding, inputs, versions())


def model_identity(name: str) -> str:
    """What a model is, wherever its folder stands: the digest of how it was trained here, else its path."""
    folder = Path(name)
    trained = read_meta(folder.parent / "training.jsonl") if folder.name == "model" else None
    if trained is None:
        return str(folder.resolve()) if folder.is_dir() else name
    made = [trained["config"], sorted(source["sha256"] for source in trained["inputs"].values())]
    digest = sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
    return f"{folder.parent.name}/model, trained as {digest[:16]}"


def versions() -> dict[str, str]:
    """Versions of what computes; recorded with every result."""
    found = {"selfjudge": __version__}
    for package in ("torch", "transformers", "peft", "accelerate"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def earlier_rows(output: StepOutput) -> Iterator[Row]:
    """The rows that were there when the output was opened; none on a pipe."""
    return iter(()) if output.path is None else read_rows(output.path)


def groups_of(examples: Iterable[Example], size: int) -> Iterator[list[Example]]:
    """The examples in their order, `size` at a time."""
    remaining = iter(examples)
    while group := list(islice(remaining, size)):
        yield group
