"""What can be wrong with a configuration although every single value is allowed; looked for before anything loads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from selfjudge.benchmarks import BENCHMARKS
from selfjudge.config import (
    AlignConfig,
    BenchConfig,
    CompareConfig,
    Config,
    DemoConfig,
    DrawOptions,
    EvaluateConfig,
    JudgeConfig,
    JudgeOptions,
    ModelOptions,
    Options,
    QuestionOptions,
    ReportConfig,
    SampleConfig,
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
        raise ConfigError("\n".join([str(error), *problems(_without_errors(kind, values))])) from None
    found = list(problems(config))
    if found:
        raise ConfigError("\n".join(found))
    return config


STAND_INS = {
    "model": "lab",
    "prompts": "lab",
    "benchmark": "lab",
    "out": "runs/unnamed",
    "run": ".",
    "a": ".",
    "b": ".",
}
"""For needed options that are missing, so that the others can be checked all the same."""


def _without_errors(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """The configuration with defaults or stand-ins for the values that are wrong or missing."""
    known = {name: value for name, value in values.items() if name in kind.model_fields}
    stand_ins = {name: STAND_INS[name] for name, field in kind.model_fields.items() if field.is_required()}
    try:
        return kind.model_validate(stand_ins | known)
    except ValidationError as error:
        wrong = {str(entry["loc"][0]) for entry in error.errors()}
    return kind.model_validate(stand_ins | {name: value for name, value in known.items() if name not in wrong})


def problems(config: Options) -> Iterator[str]:
    """One line per problem."""
    for kinds, check in CHECKS:
        if isinstance(config, kinds):
            yield from check(config)


def _model(config: Any) -> Iterator[str]:
    if config.model is None:
        if config.judge in NEEDS_MODEL and config.judge_model is None:
            yield f"--model is needed by the {config.judge} judge"
    elif config.backend != "fake":
        yield from _message_of(lambda: resolve_model(config.model))


def _vllm(config: Any) -> Iterator[str]:
    if config.backend == "vllm" and find_spec("vllm") is None:
        yield "--backend vllm: vLLM is not installed; pip install 'selfjudge[vllm]', or use --backend hf"


def _questions(config: Any) -> Iterator[str]:
    if config.questions is not None:
        yield from _message_of(lambda: load_questions(config.questions))


def _message_of(check: Any) -> Iterator[str]:
    try:
        check()
    except SelfjudgeError as error:
        yield str(error)


def _sampling(config: Any) -> Iterator[str]:
    if config.temperature > 0:
        return
    for name in ("num_responses", "eval_samples"):
        number = getattr(config, name, 1)
        if number > 1:
            yield f"--temperature 0 gives {number} times the same response; raise it or use {flag(name)} 1"
    for name in ("top_p", "top_k", "min_p"):
        if name in config.model_fields_set:
            yield f"{flag(name)} has no effect with --temperature 0; leave it out or raise the temperature"


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
    if config.backend == "vllm" and isinstance(config, TrainConfig):
        yield "--backend vllm has no effect on train, which is in transformers; leave it out"
    if config.lora_rank == 0 and "lora_alpha" in config.model_fields_set:
        yield "--lora-alpha has no effect with --lora-rank 0; leave it out or raise the rank"
    if config.micro_batch and config.batch_size % config.micro_batch:
        yield f"--micro-batch {config.micro_batch} does not divide --batch-size {config.batch_size}"
    yield from _adapter(config)


def _adapter(config: Any) -> Iterator[str]:
    """Training goes on with an adapter as it is; another rank or scale would be accepted and ignored."""
    file = Path(config.model) / "adapter_config.json"
    if not file.is_file():
        return
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return  # the model's own check names it
    for name, key in (("lora_rank", "r"), ("lora_alpha", "lora_alpha")):
        if key in found and found[key] != getattr(config, name):
            yield f"{flag(name)} {getattr(config, name)}: the adapter in {config.model} has {found[key]}; give that"


def _held_out(config: AlignConfig) -> Iterator[str]:
    if config.benchmark is not None and "holdout" in config.model_fields_set:
        yield "--holdout has no effect with --benchmark; leave one of them out"
    if config.benchmark is None and config.holdout == 0:
        yield "--holdout 0 leaves nothing to evaluate on; give a share above 0, or a --benchmark"


def _input_files(config: Any) -> Iterator[str]:
    for name in ("prompts", "input", "benchmark"):
        value = getattr(config, name, None)
        if value is not None and value != "-" and value not in WORLD:
            path = Path(value)
            if not path.is_file():
                what = "is a folder" if path.is_dir() else "no such file"
                yield f"{flag(name)} {value}: {what}; give a file, or {', '.join(WORLD)} for the built-in world"


def _benchmark(config: BenchConfig) -> Iterator[str]:
    """A registered benchmark, the built-in world, or a file of pairs."""
    known = [*BENCHMARKS, *WORLD]
    if config.benchmark in BENCHMARKS:
        if config.data is None and BENCHMARKS[config.benchmark].hub is None:
            yield f"--data is needed by --benchmark {config.benchmark}: a file"
        return
    if config.data is not None:
        yield f"--data has no effect with --benchmark {config.benchmark}; leave it out, or use {', '.join(BENCHMARKS)}"
    if config.benchmark not in WORLD and not Path(config.benchmark).is_file():
        close = get_close_matches(config.benchmark, known, 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        yield f"--benchmark {config.benchmark}: neither a file nor one of {', '.join(known)}{hint}"


def _judging_models(config: Any) -> Iterator[str]:
    given = getattr(config, "judge_model", None)
    if given is not None and getattr(config, "backend", None) != "fake":
        for name in given.split(","):
            yield from _message_of(lambda name=name: resolve_model(name))


def _no_pipe(config: AlignConfig) -> Iterator[str]:
    if config.prompts == "-":
        yield "--prompts -: several rounds cannot read from a pipe; give a file"


def _output(config: Any) -> Iterator[str]:
    if config.out is not None and config.out != "-":
        path, folder = Path(config.out), isinstance(config, (TrainOptions, DemoConfig, BenchConfig))
        parent = next((p for p in path.parents if p.exists()), Path())
        if not parent.is_dir():
            yield f"--out {config.out}: {parent} is not a folder"
        elif folder:
            if path.exists() and not path.is_dir():
                yield f"--out {config.out}: is a file; give a folder"
        elif path.is_dir():
            yield f"--out {config.out}: is a folder; give a file"
        elif not isinstance(config, ReportConfig) and path.suffix != ".jsonl":
            yield f"--out {config.out}: the name must end in .jsonl (or be - for standard output)"


def _run_folder(config: ReportConfig) -> Iterator[str]:
    if not Path(config.run).is_dir():
        yield f"--run {config.run}: no such folder; give the folder of an align or demo run"


def _bench_folders(config: CompareConfig) -> Iterator[str]:
    for name in ("a", "b"):
        folder = Path(getattr(config, name))
        if not folder.is_dir():
            yield f"{flag(name)} {folder}: no such folder; give the --out folder of selfjudge bench"


def _ignored(config: Options) -> Iterator[str]:
    """An option that the others make meaningless is an error: nobody should believe that it did something."""
    for kind, name, needed, values in DEPENDENT:
        if isinstance(config, kind) and name in config.model_fields_set:
            found = getattr(config, needed)
            if found not in values:
                allowed = " or ".join(str(value) for value in values)
                yield f"{flag(name)} has no effect with {flag(needed)} {found}; leave it out or use {allowed}"


JUDGING = (JudgeConfig, BenchConfig)
DEPENDENT: list[tuple[type[Options], str, str, tuple[Any, ...]]] = [
    (TrainOptions, "beta", "loss", ("dpo", "soft-bce", "irepo")),
    (TrainOptions, "z_max", "loss", ("irepo",)),
    (TrainOptions, "tau", "loss", ("azar",)),
    *[(kind, name, "judge", ("yes-no",)) for kind in JUDGING for name in ("questions", "in_place")],
    (JudgeOptions, "label_mass", "judge", ("yes-no",)),
    (AlignConfig, "in_place", "judge", ("yes-no",)),
    (QuestionOptions, "compare_separate", "in_place", (True,)),
    (SampleConfig, "questions", "in_place", (True,)),
    *[(kind, "seed", "judge", ("random",)) for kind in JUDGING],
    *[
        (kind, name, "judge", tuple(sorted(NEEDS_MODEL)))
        for kind in JUDGING
        for name in (*ModelOptions.model_fields, "token_budget", "judge_model")
    ],
    (DrawOptions, "sample_batch", "backend", ("hf",)),
    *[(kind, "token_budget", "backend", ("hf",)) for kind in (*JUDGING, EvaluateConfig)],
]

CHECKS: list[tuple[tuple[type[Options], ...], Any]] = [
    ((Options,), _ignored),
    ((ModelOptions,), _model),
    ((QuestionOptions, EvaluateConfig), _questions),
    ((DrawOptions,), _sampling),
    ((AlignConfig,), _pairs_need_two),
    ((AlignConfig,), _no_pipe),
    ((AlignConfig,), _held_out),
    ((TrainOptions,), _training),
    ((SampleConfig, JudgeConfig, SelectConfig, TrainConfig, EvaluateConfig, AlignConfig), _input_files),
    ((SampleConfig, JudgeConfig, SelectConfig, TrainConfig, EvaluateConfig, AlignConfig), _output),
    ((ReportConfig, DemoConfig, BenchConfig, CompareConfig), _output),
    ((CompareConfig,), _bench_folders),
    ((BenchConfig,), _benchmark),
    ((JudgeOptions,), _judging_models),
    ((ReportConfig,), _run_folder),
    ((ModelOptions,), _vllm),
]
