"""What can be wrong with a configuration although every single value is allowed; looked for before anything loads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from selfjudge.alarms import ALARMS, alarm_names
from selfjudge.backends.openai_address import api_key, base_url
from selfjudge.benchmarks import BENCHMARKS
from selfjudge.config import (
    API_OPTIONS,
    OWN_JUDGE,
    AlignConfig,
    BenchConfig,
    CompareConfig,
    Config,
    DemoConfig,
    DrawOptions,
    EvaluateConfig,
    ExportConfig,
    JudgeConfig,
    JudgeOptions,
    ModelOptions,
    Options,
    QuestionOptions,
    ReportConfig,
    RescoreConfig,
    SampleConfig,
    SearchQuestionsConfig,
    SelectConfig,
    SelectOptions,
    ThinkingOptions,
    TrainConfig,
    TrainOptions,
    build,
    flag,
)
from selfjudge.errors import ConfigError, SelfjudgeError
from selfjudge.inputs import WORLD
from selfjudge.judges import NEEDS_MODEL, committee
from selfjudge.model_names import resolve_model
from selfjudge.pair_files import FILE_TYPES
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
    **dict.fromkeys(("model", "prompts", "benchmark", "input"), "lab"),
    "out": "runs/unnamed.jsonl",
    **dict.fromkeys(("run", "a", "b"), "."),
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
    elif config.backend not in NO_FOLDER:
        yield from _message_of(lambda: resolve_model(config.model))


NO_FOLDER = ("fake", "openai")
"""Backends whose models are names, not folders."""


def _api(config: Any) -> Iterator[str]:
    if config.backend == "openai" and not isinstance(config, TrainOptions):
        yield from _message_of(lambda: base_url(config.base_url))
        yield from _message_of(lambda: api_key(config.api_key_env))


def _vllm(config: Any) -> Iterator[str]:
    if config.backend == "vllm" and find_spec("vllm") is None:
        yield "--backend vllm: vLLM is not installed; pip install 'selfjudge[vllm]', or use --backend hf"


def _questions(config: Any) -> Iterator[str]:
    yield from _message_of(lambda: load_questions(config.questions, config.wording, config.ablation))


def _layout(config: Any) -> Iterator[str]:
    if config.layout == "reference" and config.in_place:
        yield "--layout reference quotes the response, --in-place asks behind it; leave one of them out"


def _candidates(config: SearchQuestionsConfig) -> Iterator[str]:
    """Questions by subset would be chosen for the labels that they give away."""
    for problem in _message_of(lambda: load_questions(config.candidates)):
        yield f"--candidates: {problem}"
        return
    questions = load_questions(config.candidates)
    if questions.by_subset:
        yield f"--candidates {config.candidates}: its questions are by subset; give questions for the four categories"
    elif max(map(len, questions.questions.values())) == 1:
        yield f"--candidates {config.candidates}: has one wording of each question; there is nothing to choose from"


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
    if config.in_place and config.judge_model is not None:
        yield "--in-place reads the judgement of the model that samples; leave out --judge-model, or --in-place"
    if config.num_responses < 2:
        yield "--num-responses 1: a pair needs at least 2 responses per prompt"


def _training(config: Any) -> Iterator[str]:
    if config.reference == "base" and config.lora_rank == 0:
        yield "--reference base is the model under an adapter: it needs --lora-rank above 0"
    if config.dtype == "float16":
        yield "--dtype float16 cannot be trained in; use bfloat16 or float32"
    if config.backend == "fake":
        yield "--backend fake has no weights to train"
    if config.backend == "openai":
        yield (
            "--backend openai cannot train: a server's weights are out of reach; use it in sample, judge, evaluate and "
            "bench, and train a model that you have as a folder"
        )
    if config.backend == "vllm" and isinstance(config, TrainConfig):
        yield "--backend vllm has no effect on train, which is in transformers; leave it out"
    if config.lora_rank == 0 and "lora_alpha" in config.model_fields_set:
        yield "--lora-alpha has no effect with --lora-rank 0; leave it out or raise the rank"
    if config.micro_batch and config.batch_size % config.micro_batch:
        yield f"--micro-batch {config.micro_batch} does not divide --batch-size {config.batch_size}"
    yield from _early_stop(config)
    if config.quantize != "none":
        yield from _quantized(config)
    yield from _adapter(config)
    if config.anchor == 0 and "anchor_weight" in config.model_fields_set:
        yield "--anchor-weight has no effect with --anchor 0; leave it out or use --anchor 32"
    if isinstance(config, TrainConfig):
        yield from _reference_model(config)
        if (config.anchor == 0) != (config.anchor_input is None):
            yield "--anchor N and --anchor-input FILE go together: how many verdicts per step, and the judged rows"


def _own_verdicts(config: AlignConfig) -> Iterator[str]:
    """Where another judge scores, the stored scores are not what the model in training would say."""
    if config.anchor:
        for name, value in OWN_JUDGE.items():
            if getattr(config, name) != value:
                found = flag(name) if value is False else f"{flag(name)} {getattr(config, name)}"
                yield f"--anchor holds on to the model's own verdicts on the separate question: leave out {found}"


def _reference_model(config: TrainConfig) -> Iterator[str]:
    if config.reference_model is not None:
        yield from _message_of(lambda: resolve_model(config.reference_model or ""))
    elif config.reference == "first":
        yield "--reference first needs --reference-model, the model before any training; or use --reference start"


def _early_stop(config: TrainOptions) -> Iterator[str]:
    for name in ("early_stop", "eval_steps"):
        if getattr(config, name) and not config.validation:
            yield f"{flag(name)} {getattr(config, name)} needs prompts to validate on; give --validation above 0"
    if not config.early_stop:
        return
    if config.eval_steps == 0 and config.epochs <= config.early_stop:
        yield (
            f"--early-stop {config.early_stop} can never stop {config.epochs} epochs with one validation each; give "
            "--eval-steps, or more epochs"
        )
    if "save_steps" in config.model_fields_set:
        yield "--save-steps has no effect with --early-stop, which saves at every validation; leave it out"


def _quantized(config: TrainOptions) -> Iterator[str]:
    if config.lora_rank == 0:
        yield f"--quantize {config.quantize}: 4-bit weights cannot be trained; give a --lora-rank above 0"
    if find_spec("bitsandbytes") is None:
        yield f"--quantize {config.quantize}: bitsandbytes is not installed; pip install 'selfjudge[qlora]'"
    if getattr(config, "device", None) == "cpu":
        yield f"--quantize {config.quantize} needs a GPU; leave it out, or --device cpu"


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


def _alarms(config: AlignConfig) -> Iterator[str]:
    for name in ("warn_on", "stop_on"):
        for word in alarm_names(getattr(config, name)):
            if word not in ALARMS:
                close = get_close_matches(word, ALARMS, 1)
                hint = f" (did you mean {close[0]}?)" if close else ""
                yield f"{flag(name)} {word!r}: should be {', '.join(ALARMS)}, with commas between, all or none{hint}"
    named = [word.strip() for word in config.stop_on.split(",")]
    if "mass" in named and config.label_mass == 0:
        yield "--stop-on mass has nothing to look at with --label-mass 0; leave one of them out"
    if "margin" in named and config.judge in CONTROLS:
        yield f"--stop-on margin says nothing of --judge {config.judge}, which no training changes; leave it out"


CONTROLS = ("oracle", "random")


def _agreement_key(config: Any) -> Iterator[str]:
    if config.agreement == 0 and "agreement_key" in config.model_fields_set:
        yield "--agreement-key has no effect with --agreement 0; leave it out or raise --agreement (2 is a good start)"


def _held_out(config: AlignConfig) -> Iterator[str]:
    if config.benchmark is not None and "holdout" in config.model_fields_set:
        yield "--holdout has no effect with --benchmark; leave one of them out"
    if config.benchmark is None and config.holdout == 0:
        yield "--holdout 0 leaves nothing to evaluate on; give a share above 0, or a --benchmark"


def _input_files(config: Any) -> Iterator[str]:
    for name in ("prompts", "input", "anchor_input", "benchmark"):
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
    names: list[str] = [] if given is None else given.split(",")
    if len(names) > 1 and config.judge in NEEDS_MODEL - {"committee"}:
        yield f"--judge-model {given}: the {config.judge} judge asks one model; give one, or use --judge committee"
    if len({*names}) < len(names):
        yield f"--judge-model {given}: names a model twice; its votes would only be counted twice"
    if getattr(config, "backend", None) not in NO_FOLDER or config.judge == "reward-model":
        for name in names:
            yield from _message_of(lambda name=name: resolve_model(name))


def _committee(config: Any) -> Iterator[str]:
    if config.judge == "committee":
        models = 1 if config.judge_model is None else len(config.judge_model.split(","))
        try:
            wordings = load_questions(config.questions).wordings
        except SelfjudgeError:
            return  # told by the check of the questions
        yield from committee.problems(wordings, models, config.annotators, config.votes)


def _reward_model(config: AlignConfig) -> Iterator[str]:
    if config.judge == "reward-model" and config.judge_model is None:
        yield "--judge-model is needed by the reward-model judge: a sequence classifier; --model is what is trained"


def _no_pipe(config: AlignConfig) -> Iterator[str]:
    if config.prompts == "-":
        yield "--prompts -: several rounds cannot read from a pipe; give a file"


def _output(config: Any) -> Iterator[str]:
    if config.out is not None and config.out != "-":
        path, folder = (
            Path(config.out),
            isinstance(config, (TrainOptions, DemoConfig, BenchConfig, SearchQuestionsConfig)),
        )
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


def _export_file(config: ExportConfig) -> Iterator[str]:
    out = Path(config.out)
    if out.suffix not in FILE_TYPES:
        yield f"--out {config.out}: the name must end in {', '.join(FILE_TYPES)}"
    elif out.is_dir():
        yield f"--out {config.out}: is a folder; give a file"
    elif out.suffix == ".parquet" and find_spec("pyarrow") is None:
        yield f"--out {config.out}: Parquet files need pyarrow: pip install 'selfjudge[parquet]'"
    parent = next((path for path in out.parents if path.exists()), Path())
    if not parent.is_dir():
        yield f"--out {config.out}: {parent} is not a folder"
    if out.exists() and out.resolve() == Path(config.input).resolve():
        yield f"--out {config.out}: is the input; give another file"


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


def _seed(config: Any) -> Iterator[str]:
    if config.judge in COMPARING and config.orders == "both" and "seed" in config.model_fields_set:
        yield "--seed has no effect with --orders both; leave it out or use --orders one"


JUDGING = (JudgeConfig, BenchConfig)
STEPS = (SampleConfig, JudgeConfig, RescoreConfig, SelectConfig, TrainConfig, EvaluateConfig, AlignConfig)
LOCAL_OPTIONS = ("device", "dtype", "trust_remote_code", "threads", "max_length")
"""What a server has decided by itself."""
COMPARING = ("pairwise", "pairwise-verdict")
DEPENDENT: list[tuple[type[Options], str, str, tuple[Any, ...]]] = [
    (TrainOptions, "beta", "loss", ("dpo", "soft-bce", "irepo")),
    (TrainOptions, "z_max", "loss", ("irepo",)),
    (TrainOptions, "tau", "loss", ("azar",)),
    (TrainConfig, "reference_model", "reference", ("first",)),
    *[(kind, name, "judge", ("yes-no",)) for kind in JUDGING for name in ("wording", "ablation", "layout", "in_place")],
    *[(kind, "questions", "judge", ("yes-no", "committee")) for kind in JUDGING],
    (JudgeOptions, "label_mass", "judge", ("yes-no", "committee")),
    *[(JudgeOptions, name, "judge", ("committee",)) for name in ("annotators", "votes")],
    (AlignConfig, "in_place", "judge", ("yes-no",)),
    (QuestionOptions, "compare_separate", "in_place", (True,)),
    *[(SampleConfig, name, "in_place", (True,)) for name in ("questions", "wording", "ablation")],
    *[(kind, "seed", "judge", ("random", *COMPARING)) for kind in JUDGING],
    (BenchConfig, "check_routing", "judge", tuple(sorted(NEEDS_MODEL))),
    (JudgeOptions, "judge_tokens", "judge", ("rating", "pairwise-verdict")),
    (JudgeOptions, "orders", "judge", COMPARING),
    *[
        (kind, name, "judge", tuple(sorted(NEEDS_MODEL)))
        for kind in JUDGING
        for name in (*ModelOptions.model_fields, "token_budget", "judge_model")
    ],
    (DrawOptions, "sample_batch", "backend", ("hf",)),
    *[(kind, "token_budget", "backend", ("hf",)) for kind in (*JUDGING, EvaluateConfig, SearchQuestionsConfig)],
    *[(ModelOptions, name, "backend", ("openai",)) for name in API_OPTIONS],
    *[(ModelOptions, name, "backend", ("hf", "vllm", "fake")) for name in LOCAL_OPTIONS],
    *[(DrawOptions, name, "backend", ("hf", "vllm", "fake")) for name in ("top_k", "min_p")],
    (ThinkingOptions, "thinking", "backend", ("hf", "vllm", "fake")),
]

CHECKS: list[tuple[tuple[type[Options], ...], Any]] = [
    ((Options,), _ignored),
    ((ModelOptions,), _model),
    ((QuestionOptions, EvaluateConfig), _questions),
    ((JudgeOptions, EvaluateConfig), _layout),
    ((SearchQuestionsConfig,), _candidates),
    ((DrawOptions,), _sampling),
    ((AlignConfig,), _pairs_need_two),
    ((AlignConfig,), _no_pipe),
    ((AlignConfig,), _own_verdicts),
    ((AlignConfig,), _held_out),
    ((SelectOptions,), _agreement_key),
    ((AlignConfig,), _alarms),
    ((TrainOptions,), _training),
    ((*STEPS, SearchQuestionsConfig, ExportConfig), _input_files),
    (STEPS, _output),
    ((ExportConfig,), _export_file),
    ((ReportConfig, DemoConfig, BenchConfig, CompareConfig, SearchQuestionsConfig), _output),
    ((CompareConfig,), _bench_folders),
    ((BenchConfig,), _benchmark),
    ((JudgeOptions,), _judging_models),
    ((JudgeOptions,), _committee),
    ((AlignConfig,), _reward_model),
    (JUDGING, _seed),
    ((ReportConfig,), _run_folder),
    ((ModelOptions,), _vllm),
    ((ModelOptions,), _api),
]
