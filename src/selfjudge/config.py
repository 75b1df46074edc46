"""Every option of every command: one frozen class per command, made of shared groups.

A field is a flag (`num_responses` is `--num-responses`), a YAML key, a default and a help text at once.

    >>> config = build(SelectConfig, {"min_margin": "0.5"})
    >>> config.min_margin
    0.5

`build` reports all problems of a configuration together, before anything is loaded.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from selfjudge.alarms import ALARMS, ALL, NONE
from selfjudge.errors import ConfigError


def option(default: Any, text: str, *, changes_result: bool = True, **constraints: Any) -> Any:
    """A field; `changes_result` False marks what may differ when a step goes on after an interruption."""
    return Field(default, description=text, json_schema_extra={"changes_result": changes_result}, **constraints)


class Options(BaseModel):
    """Base of all option groups: frozen, and unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), defer_build=True)
    positional: ClassVar[tuple[str, ...]] = ()
    """Options that may also be given as plain words, in this order."""

    def deciding(self) -> dict[str, Any]:
        """The options that decide what a step computes; the others (paths, memory, speed) may change on a resume."""
        fields = type(self).model_fields
        return {name: value for name, value in self.model_dump().items() if _changes_result(fields[name])}


def _changes_result(field: Any) -> bool:
    return bool((field.json_schema_extra or {}).get("changes_result", True))


class ModelOptions(Options):
    """Which model, and where and how it runs."""

    model: str = option(..., "model folder, hub name owner/model, or the built-in lab or lab-weak")
    backend: Literal["hf", "vllm", "openai", "fake"] = option(
        "hf",
        "what samples and judges: hf is transformers, vllm is faster on GPUs, openai is a server with an "
        "OpenAI-compatible API, where --model is its name there; training is always in transformers",
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N", changes_result=False, pattern=r"auto|cpu|cuda(:\d+)?")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "auto is float32 on a CPU, bfloat16 on a GPU"
    )
    trust_remote_code: bool = option(False, "run code that comes with the model", changes_result=False)
    threads: int = option(
        0, "CPU threads; 0: PyTorch's choice; 1 is fastest for tiny models", changes_result=False, ge=0
    )
    max_length: int = option(0, "tokens of prompt and response together; 0: the model's context", ge=0)
    base_url: str | None = option(
        None, "openai: the server's address, http://HOST:PORT/v1; none: that in OPENAI_BASE_URL", changes_result=False
    )
    api_key_env: str = option(
        "OPENAI_API_KEY",
        "openai: environment variable that holds the key, if the server wants one",
        changes_result=False,
    )
    concurrency: int = option(8, "openai: requests under way at a time", changes_result=False, ge=1)
    max_requests: int = option(
        0, "openai: a command that needs more requests than this asks none; 0: no limit", changes_result=False, ge=0
    )
    input_price: float = option(
        0.0, "openai: US dollars per million input tokens, for the estimate", changes_result=False, ge=0
    )
    output_price: float = option(
        0.0, "openai: US dollars per million output tokens, for the estimate", changes_result=False, ge=0
    )
    api_cache: str | None = option(
        None,
        "openai: file that keeps every answer; none: selfjudge/api.sqlite3 in the user's cache folder",
        changes_result=False,
    )


API_OPTIONS = ("base_url", "api_key_env", "concurrency", "max_requests", "input_price", "output_price", "api_cache")
"""Options of ModelOptions that only --backend openai has."""


class ThinkingOptions(Options):
    """How answers are rendered; a judge's question never opens a thinking part."""

    thinking: bool = option(False, "let sampled answers open with a thinking part, where the chat template has one")


class RowOptions(Options):
    """How much is computed at a time where responses are read, not drawn."""

    token_budget: int = option(
        0,
        "tokens in one packed row; 0: what fits, at most 2048 on a CPU, 16384 on a GPU",
        changes_result=False,
        ge=0,
    )


class DrawOptions(ThinkingOptions):
    """How responses are drawn."""

    temperature: float = option(0.7, "0 is greedy", ge=0)
    top_p: float = option(1.0, "keep the most probable tokens up to this total; 1: all", gt=0, le=1)
    top_k: int = option(0, "keep this many tokens; 0: all", ge=0)
    min_p: float = option(0.0, "drop tokens below this share of the most probable one; 0: none", ge=0, lt=1)
    max_new_tokens: int = option(256, "tokens per response at most", ge=1)
    seed: int = option(0, "seed of all random numbers", ge=0)
    sample_batch: int = option(
        0, "sequences sampled at a time; 0: what fits the memory set aside", changes_result=False, ge=0
    )


class SampleOptions(DrawOptions):
    """How many responses are drawn, and how."""

    num_responses: int = option(4, "responses per prompt", ge=1)


QUESTIONS = "TOML file with your own wording of the questions, or FILE.json or FILE.json#SET of the reference's form"
WORDING = "which wording of the questions is asked, counted from 1"
ABLATION = "same: one question for all categories; shuffled: each category gets another one's"
LAYOUT = "reference: asked as the reference implementation does, for comparing with its figures only"
Ablation = Literal["none", "same", "shuffled"]
Layout = Literal["chat", "reference"]


class QuestionOptions(Options):
    """How the model is asked for its judgement."""

    questions: str | None = option(None, QUESTIONS)
    wording: int = option(1, WORDING, ge=1)
    ablation: Ablation = option("none", ABLATION)
    in_place: bool = option(
        False,
        "ask as the next turn instead of quoting request and response; while sampling, read from the cache it built",
    )
    compare_separate: int = option(
        64, "with --in-place: prompts judged with the separate question too, to report how both agree; 0: none", ge=0
    )


JudgeName = Literal[
    "yes-no",
    "committee",
    "rating",
    "rating-expected",
    "pairwise",
    "pairwise-verdict",
    "reward-model",
    "oracle",
    "random",
]


class JudgeOptions(RowOptions, QuestionOptions):
    """Who judges, and how it is asked."""

    judge: JudgeName = option(
        "yes-no",
        "yes-no asks whether a response is good; committee is the vote of several wordings and models; rating has the "
        "model write a grade, rating-expected takes the mean over the grade's probabilities; pairwise compares every "
        "two responses, pairwise-verdict has the model write which is better; reward-model is a sequence classifier "
        "(always in transformers); oracle compares with the reference; random is a control",
    )
    layout: Layout = option("chat", LAYOUT)
    judge_model: str | None = option(
        None, "the model that judges; several, separated by commas, for a committee; none: --model itself"
    )
    annotators: int = option(
        0, "committee: the first N of its annotators (wording 1 put to every model, then wording 2, ...); 0: all", ge=0
    )
    votes: Literal["soft", "hard"] = option(
        "soft", "committee: soft votes are probabilities, hard ones 1, 0, or 1/2 for a tie"
    )
    label_mass: float = option(1.0, "share of the responses whose label mass is computed; 0: none", ge=0, le=1)
    judge_tokens: int = option(256, "rating and pairwise-verdict: tokens of the judge's answer at most", ge=1)
    orders: Literal["both", "one"] = option(
        "both",
        "pairwise judges: show every two responses in both orders, or in one that a hash picks, which is half the "
        "work but leaves a liking for a place in the scores",
    )


OWN_JUDGE: dict[str, Any] = {"judge": "yes-no", "judge_model": None, "in_place": False, "layout": "chat"}
"""The options of a judge whose scores are the model's own verdicts on the separate question."""


class SelectOptions(Options):
    """Which responses become training pairs."""

    select: Literal["best-worst", "all-pairs"] = option("best-worst", "responses kept per prompt")
    score_temperature: float = option(1.0, "log-odds are divided by this to become strengths", gt=0)
    agreement: float = option(0.0, "adds this times log(count of the same answer among the responses)", ge=0)
    agreement_key: Literal["exact", "final-number", "last-line", "normalised"] = option(
        "exact",
        "what --agreement counts as the same answer: the exact text, the last number in it, its last line, or the text "
        "without case, white space and punctuation at the ends",
    )
    min_margin: float = option(0.0, "least difference in strength between best and worst, nats", ge=0)
    keep_unfinished: bool = option(False, "keep responses that hit the token limit")


class TrainOptions(ThinkingOptions, RowOptions):
    """The loss and how it is minimised."""

    loss: Literal["dpo", "soft-bce", "azar", "irepo"] = option("dpo", "preference loss")
    beta: float = option(0.1, "strength of the pull to the reference in dpo, soft-bce and irepo", gt=0)
    z_max: float = option(4.0, "irepo: targets are clipped to this many nats", gt=0)
    tau: float = option(0.1, "azar: regularisation, its target is 1 / (2 tau)", gt=0)
    reference: Literal["sample", "start", "base", "first"] = option(
        "sample",
        "log-probs of the reference: the sampler's own (checked, recomputed when they drift), those of the model "
        "before training, of the model under the adapter, or of the first model: in align the one before round 1, in "
        "train --reference-model",
    )
    anchor: int = option(
        0, "own verdicts per step that training holds on to, so that the model stays the judge it was; 0: none", ge=0
    )
    anchor_weight: float = option(1.0, "weight of the verdicts' mean cross-entropy in the loss", gt=0)
    learning_rate: float = option(5e-5, "peak learning rate", gt=0)
    schedule: Literal["cosine", "linear", "constant"] = option("cosine", "course of the learning rate after warm-up")
    warmup: float = option(0.1, "share of the steps in which the learning rate rises", ge=0, lt=1)
    epochs: int = option(1, "passes over the pairs", ge=1)
    batch_size: int = option(32, "prompts per optimiser step", ge=1)
    micro_batch: int = option(
        0, "prompts per backward pass; 0: as many as 2048 tokens hold, 4096 on a GPU", changes_result=False, ge=0
    )
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm", gt=0)
    weight_decay: float = option(0.0, "AdamW weight decay", ge=0)
    lora_rank: int = option(16, "rank of the LoRA adapter on all linear layers; 0: train all weights", ge=0)
    lora_alpha: int = option(32, "scale of the LoRA adapter", ge=1)
    quantize: Literal["none", "nf4"] = option(
        "none", "nf4: the weights under the adapter are held in 4 bits while training (QLoRA), on a GPU"
    )
    gradient_checkpointing: bool = option(False, "less memory for a quarter more time", changes_result=False)
    validation: float = option(0.05, "share of the prompts kept out of training to validate on", ge=0, lt=1)
    eval_steps: int = option(0, "optimiser steps between validations; 0: one at the end of each epoch", ge=0)
    early_stop: int = option(
        0,
        "stop when the validation loss has not improved for this many validations, and keep the best model; a "
        "checkpoint is taken at every validation; 0: never",
        ge=0,
    )
    save_steps: int = option(
        200, "optimiser steps between checkpoints to resume from; 0: none", changes_result=False, ge=0
    )


class EvaluateOptions(RowOptions):
    """What a model is measured on."""

    benchmark: str | None = option(
        None, "lab, lab-dev, or a file of rows with right and wrong responses or reference answers"
    )
    eval_samples: int = option(4, "sampled answers per question, beside the greedy one", ge=1)


class SampleConfig(ModelOptions, SampleOptions, QuestionOptions):
    """Sample several responses per prompt, and with --in-place judge them at once."""

    prompts: str = option("-", "prompts: JSONL, JSON, CSV, Parquet or text file, lab, or - for JSONL on stdin")
    out: str = option("-", "JSONL file to append to, - for stdout", changes_result=False)
    limit: int = option(0, "use the first N prompts; 0: all", ge=0)


class JudgeConfig(ModelOptions, JudgeOptions):
    """Score responses: log p(Yes) - log p(No), a grade, comparisons, or a control judge."""

    model: str | None = option(None, "model folder, hub name or lab; not needed by oracle and random")  # pyright: ignore
    input: str = option("-", "rows with responses: a file in any accepted format, lab, or - for JSONL on stdin")
    out: str = option("-", "JSONL file to append to, - for stdout", changes_result=False)
    seed: int = option(0, "seed of the random judge, and of what --orders one picks", ge=0)
    limit: int = option(0, "judge the first N rows; 0: all", ge=0)


class RescoreConfig(Options):
    """Compute scores again from their stored evidence, without a model."""

    input: str = option("-", "scored rows: a JSONL file, - for stdin")
    out: str = option("-", "JSONL file to append to, - for stdout", changes_result=False)
    judge: Literal["recorded", "yes-no", "rating", "rating-expected", "pairwise", "pairwise-verdict"] = option(
        "recorded", "the judge that scored the rows; recorded: the one in the input's meta file"
    )


class SelectConfig(SelectOptions):
    """Turn scored responses into training pairs."""

    input: str = option("-", "scored rows: a JSONL file, - for stdin")
    out: str = option("-", "JSONL file to append to, - for stdout", changes_result=False)


class TrainConfig(ModelOptions, TrainOptions):
    """Train a model on selected pairs."""

    input: str = option("-", "selected rows, or your own pairs (prompt, chosen, rejected): a file, - for stdin")
    out: str = option(..., "folder for the trained model and its log", changes_result=False)
    anchor_input: str | None = option(None, "with --anchor: the rows that the model itself judged, before selecting")
    reference_model: str | None = option(None, "with --reference first: the model whose log-probs are the reference")
    seed: int = option(0, "seed of the order of the data and of the adapter", ge=0)


class EvaluateConfig(ModelOptions, DrawOptions, EvaluateOptions):
    """Measure a model: its answers where the right one is known, and its judge."""

    benchmark: str = option(..., "lab, lab-dev, or a file of rows with right and wrong responses or reference answers")  # pyright: ignore
    questions: str | None = option(None, QUESTIONS)
    wording: int = option(1, WORDING, ge=1)
    ablation: Ablation = option("none", ABLATION)
    layout: Layout = option("chat", LAYOUT)
    in_place: bool = option(False, "ask as the next turn instead of quoting request and response")
    out: str = option("-", "JSONL file to append to, - for stdout", changes_result=False)
    limit: int = option(0, "use the first N rows; 0: all", ge=0)


class AlignConfig(ModelOptions, SampleOptions, JudgeOptions, SelectOptions, TrainOptions, EvaluateOptions):
    """The loop: sample, judge, select, train, evaluate; round after round."""

    prompts: str = option(..., "prompts: JSONL, JSON, CSV, Parquet or text file, or lab")
    out: str = option(
        "runs/align", "folder of the run; the same command goes on where it stopped", changes_result=False
    )
    rounds: int = option(3, "rounds", changes_result=False, ge=1)
    prompts_per_round: int = option(0, "prompts of each round, one stretch of the file after the other; 0: all", ge=0)
    holdout: float = option(0.05, "share of the prompts kept out of all rounds, to evaluate on", ge=0, lt=1)
    warn_on: str = option(
        ALL, f"signs, compared with round 1, that a round is warned of: {', '.join(ALARMS)}, all or none"
    )
    stop_on: str = option(NONE, "signs after which the run ends with the round: a list with commas, all or none")


class BenchConfig(ModelOptions, JudgeOptions):
    """Measure a judge on a benchmark: how often it prefers the right response, and how sure that is."""

    model: str | None = option(None, "model folder, hub name or lab; not needed by oracle and random")  # pyright: ignore
    benchmark: str = option(
        ..., "rewardbench, rewardbench-paper, rewardbench2, rm-bench, pairs, lab, lab-dev, or a file of pairs"
    )
    data: str | None = option(None, "file, folder or hub name to read the benchmark from; none: its own on the hub")
    check_routing: int = option(64, "rows with a category whose category the model is asked for too; 0: none", ge=0)
    out: str = option(..., "folder for the judged rows and the results", changes_result=False)
    seed: int = option(0, "seed of everything that is drawn", ge=0)
    limit: int = option(0, "judge N rows only, picked by a hash of their content; 0: all", ge=0)


class ExportConfig(Options):
    """Write pairs of a better and a worse response for another training program."""

    input: str = option("-", "selected rows, or rows with right and wrong responses: a file, lab, - for JSONL on stdin")
    out: str = option(..., "file of pairs: .jsonl, .json or .parquet", changes_result=False)
    format: Literal[
        "trl", "trl-text", "llama-factory", "axolotl", "openrlhf", "nemo-rl", "ms-swift", "ultrafeedback"
    ] = option("trl", "whose format; trl-text is TRL's without messages")


class SearchQuestionsConfig(ModelOptions, RowOptions):
    """Choose the wording of the questions on one part of labelled rows, and measure the choice on the other."""

    input: str = option(..., "rows with right and wrong responses, or lab or lab-dev")
    candidates: str | None = option(None, "questions file with several wordings of each; none: the built-in ones")
    development: float = option(0.5, "share of the prompts to choose on; the others only measure", gt=0, lt=1)
    out: str = option(..., "folder for the scored rows, the results and questions.toml", changes_result=False)
    limit: int = option(0, "use the first N rows; 0: all", ge=0)


class CompareConfig(Options):
    """Compare two bench runs on the rows that both have: which judge is better, and on which rows they differ."""

    positional = ("a", "b")
    a: str = option(..., "folder of one bench run")
    b: str = option(..., "folder of the other bench run")
    out: str | None = option(
        None, "JSONL file for the rows that only one of the two has right, - for stdout", changes_result=False
    )


class ReportConfig(Options):
    """Write the report of a run, or of several bench runs: one self-contained HTML file."""

    run: str = option(
        ..., "folder of an align run, of a demo with several arms, or of bench runs (also in folders below)"
    )
    out: str | None = option(None, "the HTML file; default: report.html in the run's folder", changes_result=False)


class DemoConfig(Options):
    """Run the loop on the built-in world and report what it did."""

    model: Literal["lab", "lab-weak"] = option("lab", "built-in model")
    rounds: int = option(3, "rounds", ge=1)
    seed: int = option(0, "seed of all random numbers", ge=0)
    controls: bool = option(False, "add the oracle arm (truth as judge) and the random arm")
    out: str = option("demo", "folder of the run")


GENERAL = ("config", "quiet", "json")
"""Flags that every command has beside the fields of its class."""

Config = TypeVar("Config", bound=Options)


def build(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """A validated configuration from flags and YAML values; raises ConfigError with every problem, one a line."""
    problems = unknown_names(kind, values)
    known = {name: value for name, value in values.items() if name in kind.model_fields}
    try:
        config = kind.model_validate(known)
    except ValidationError as error:
        raise ConfigError("\n".join(problems + [_describe(kind, entry) for entry in error.errors()])) from None
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def unknown_names(kind: type[Options], names: Mapping[str, Any]) -> list[str]:
    """A line for each name that is no field of `kind`, with the nearest one."""
    return [
        f"{flag(name)} belongs on the command line, not in the file"
        if name in GENERAL
        else f"unknown option {flag(name)}{_nearest(name, kind)}"
        for name in names
        if name not in kind.model_fields
    ]


def flag(name: str) -> str:
    """`num_responses` -> `--num-responses`."""
    return "--" + name.replace("_", "-")


def _nearest(name: str, kind: type[Options]) -> str:
    close = difflib.get_close_matches(name, [*kind.model_fields, *GENERAL], n=1, cutoff=0.6)
    return f"; the nearest is {flag(close[0])}" if close else f"; see selfjudge {command_name(kind)} --help"


def command_name(kind: type[Options]) -> str:
    """`SearchQuestionsConfig` -> `search-questions`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__.removesuffix("Config")).lower()


def _describe(kind: type[Options], entry: Any) -> str:
    name = str(entry["loc"][0])
    if entry["type"] == "missing":
        return f"{flag(name)} is needed: {kind.model_fields[name].description}"
    message = entry["msg"].removeprefix("Input should be ")
    if entry["type"] == "string_pattern_mismatch":
        message = str(kind.model_fields[name].description)
    line = f"{flag(name)} {entry['input']!r}: should be {message}"
    if entry["type"] == "literal_error":
        allowed = [word.strip("'") for word in entry["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        close = difflib.get_close_matches(str(entry["input"]), allowed, n=1)
        line += f" (did you mean {close[0]}?)" if close else ""
    return line
