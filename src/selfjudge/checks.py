"""What can be wrong with a configuration although every single value is allowed; looked for before anything loads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from selfjudge.config import (
    AlignConfig,
    Config,
    EvaluateConfig,
    JudgeConfig,
    JudgeOptions,
    ModelOptions,
    Options,
    ReportConfig,
    SampleConfig,
    SampleOptions,
    SelectConfig,
    TrainConfig,
    TrainOptions,
    build,
    flag,
)
from selfjudge.errors import ConfigError, SelfjudgeError
from selfjudge.inputs import WORLD
from selfjudge.judges import NEEDS_MODEL
from selfjudge.model_names import resolve_model
from selfjudge.questions import load_questions


def build_checked(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """The configuration; raises ConfigError with all its problems, of single values and of their combination."""
    try:
        config = build(kind, values)
    except ConfigError as error:
        rest = _without_errors(kind, values)
        raise ConfigError("\n".join([str(error), *(problems(rest) if rest else [])])) from None
    found = list(problems(config))
    if found:
        raise ConfigError("\n".join(found))
    return config


def _without_errors(kind: type[Config], values: Mapping[str, Any]) -> Config | None:
    """The configuration with defaults in place of the values that are wrong; None where one is needed and missing."""
    known = {name: value for name, value in values.items() if name in kind.model_fields}
    try:
        return kind.model_validate(known)
    except ValidationError as error:
        wrong = {str(entry["loc"][0]) for entry in error.errors()}
    try:
        return kind.model_validate({name: value for name, value in known.items() if name not in wrong})
    except ValidationError:
        return None


def problems(config: Options) -> Iterator[str]:
    """One line per problem."""
    for kinds, check in CHECKS:
        if isinstance(config, kinds):
            yield from check(config)


def _model(config: Any) -> Iterator[str]:
    if config.model is None:
        if config.judge in NEEDS_MODEL:
            yield f"--model is needed by the {config.judge} judge"
    elif config.backend != "fake":
        yield from _message_of(lambda: resolve_model(config.model))


def _questions(config: Any) -> Iterator[str]:
    if config.questions is not None:
        yield from _message_of(lambda: load_questions(config.questions))


def _message_of(check: Any) -> Iterator[str]:
    try:
        check()
    except SelfjudgeError as error:
        yield str(error)


def _sampling(config: Any) -> Iterator[str]:
    if config.temperature == 0 and config.num_responses > 1:
        yield f"--temperature 0 gives {config.num_responses} times the same response; raise it or use --num-responses 1"


def _pairs_need_two(config: AlignConfig) -> Iterator[str]:
    if config.num_responses < 2:
        yield "--num-responses 1: a pair needs at least 2 responses per prompt"


def _training(config: Any) -> Iterator[str]:
    if config.reference == "base" and config.lora_rank == 0:
        yield "--reference base is the model under an adapter: it needs --lora-rank above 0"
    if config.dtype == "float16":
        yield "--dtype float16 cannot be trained in; use bfloat16 or float32"
    if config.backend == "fake":
        yield "--backend fake has no weights to train"


def _input_files(config: Any) -> Iterator[str]:
    for name in ("prompts", "input", "benchmark"):
        value = getattr(config, name, None)
        if value is not None and value != "-" and value not in WORLD:
            path = Path(value)
            if not path.is_file():
                what = "is a folder" if path.is_dir() else "no such file"
                yield f"{flag(name)} {value}: {what}; give a file, or {', '.join(WORLD)} for the built-in world"


def _no_pipe(config: AlignConfig) -> Iterator[str]:
    if config.prompts == "-":
        yield "--prompts -: several rounds cannot read from a pipe; give a file"


def _output(config: Any) -> Iterator[str]:
    if config.out is not None and config.out != "-":
        path = Path(config.out)
        parent = next((p for p in path.parents if p.exists()), Path())
        if not parent.is_dir():
            yield f"--out {config.out}: {parent} is not a folder"


def _run_folder(config: ReportConfig) -> Iterator[str]:
    if not Path(config.run).is_dir():
        yield f"--run {config.run}: no such folder; give the folder of an align or demo run"


def _ignored(config: Options) -> Iterator[str]:
    """An option that the others make meaningless is an error: nobody should believe that it did something."""
    for kind, name, needed, values in DEPENDENT:
        if isinstance(config, kind) and name in config.model_fields_set:
            found = getattr(config, needed)
            if found not in values:
                allowed = " or ".join(str(value) for value in values)
                yield f"{flag(name)} has no effect with {flag(needed)} {found}; leave it out or use {allowed}"


DEPENDENT: list[tuple[type[Options], str, str, tuple[Any, ...]]] = [
    (TrainOptions, "beta", "loss", ("dpo", "soft-bce", "irepo")),
    (TrainOptions, "z_max", "loss", ("irepo",)),
    (TrainOptions, "tau", "loss", ("azar",)),
    (JudgeConfig, "questions", "judge", ("yes-no",)),
    (JudgeConfig, "in_place", "judge", ("yes-no",)),
    (JudgeConfig, "seed", "judge", ("random",)),
]

CHECKS: list[tuple[tuple[type[Options], ...], Any]] = [
    ((Options,), _ignored),
    ((ModelOptions,), _model),
    ((JudgeOptions, EvaluateConfig), _questions),
    ((SampleOptions,), _sampling),
    ((AlignConfig,), _pairs_need_two),
    ((AlignConfig,), _no_pipe),
    ((TrainOptions,), _training),
    ((SampleConfig, JudgeConfig, SelectConfig, TrainConfig, EvaluateConfig, AlignConfig), _input_files),
    ((SampleConfig, JudgeConfig, SelectConfig, TrainConfig, EvaluateConfig, AlignConfig, ReportConfig), _output),
    ((ReportConfig,), _run_folder),
]
