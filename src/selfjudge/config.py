"""Every option of every command: one frozen class per command, made of shared groups.

A field is a flag (`num_responses` is `--num-responses`), a YAML key, a default and a help text at once.

    >>> config = build(SelectConfig, {"min_margin": "0.5"})
    >>> config.min_margin
    0.5

`build` reports all problems of a configuration together, before anything is loaded.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from selfjudge.errors import ConfigError


def option(default: Any, text: str, *, changes_result: bool = True, **constraints: Any) -> Any:
    """A field; `changes_result` False marks what may differ when a step goes on after an interruption."""
    return Field(default, description=text, json_schema_extra={"changes_result": changes_result}, **constraints)


class Options(BaseModel):
    """Base of all option groups: frozen, and unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), defer_build=True)

    def deciding(self) -> dict[str, Any]:
        """The options that decide what a step computes; the others (paths, memory, speed) may change on a resume."""
        fields = type(self).model_fields
        return {name: value for name, value in self.model_dump().items() if _changes_result(fields[name])}


def _changes_result(field: Any) -> bool:
    return bool((field.json_schema_extra or {}).get("changes_result", True))


class ModelOptions(Options):
    """Which model, and where and how it runs."""

    model: str = option(..., "model folder, hub name owner/model, or the built-in lab or lab-weak")
    backend: Literal["hf", "vllm", "fake"] = option(
        "hf", "what samples and judges: hf is transformers, vllm is faster on GPUs; training is always in transformers"
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


class QuestionOptions(Options):
    """How the model is asked for its judgement."""

    questions: str | None = option(None, "TOML file with your own wording of the questions")
    in_place: bool = option(
        False,
        "ask as the next turn instead of quoting request and response; while sampling, read from the cache it built",
    )
    compare_separate: int = option(
        64, "with --in-place: prompts judged with the separate question too, to report how both agree; 0: none", ge=0
    )


JudgeName = Literal["yes-no", "oracle", "random"]


class JudgeOptions(RowOptions, QuestionOptions):
    """Who judges, and how it is asked."""

    judge: JudgeName = option(
        "yes-no", "yes-no asks the model; oracle compares with the reference; random is a control"
    )
    judge_model: str | None = option(
        None, "the model that judges; several, separated by commas, for a committee; none: --model itself"
    )
    label_mass: float = option(1.0, "share of the responses whose label mass is computed; 0: none", ge=0, le=1)


class SelectOptions(Options):
    """Which responses become training pairs."""

    select: Literal["best-worst", "all-pairs"] = option("best-worst", "responses kept per prompt")
    score_temperature: float = option(1.0, "log-odds are divided by this to become strengths", gt=0)
    agreement: float = option(0.0, "adds this times log(count of the same answer among the responses)", ge=0)
    min_margin: float = option(0.0, "least difference in strength between best and worst, nats", ge=0)
    keep_unfinished: bool = option(False, "keep responses that hit the token limit")


class TrainOptions(ThinkingOptions, RowOptions):
    """The loss and how it is minimised."""

    loss: Literal["dpo", "soft-bce", "azar", "irepo"] = option("dpo", "preference loss")
    beta: float = option(0.1, "strength of the pull to the reference in dpo, soft-bce and irepo", gt=0)
    z_max: float = option(4.0, "irepo: targets are clipped to this many nats", gt=0)
    tau: float = option(0.1, "azar: regularisation, its target is 1 / (2 tau)", gt=0)
    reference: Literal["sample", "start", "base"] = option(
        "sample",
        "log-probs of the reference: the sampler's own (checked, recomputed when they drift), those of the model "
        "before training, or of the model under the adapter",
    )
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
    gradient_checkpointing: bool = option(False, "less memory for a quarter more time", changes_result=False)
    validation: float = option(0.05, "share of the prompts kept out of training to validate on", ge=0, lt=1)
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
    """Score responses: log p(Yes) - log p(No), or a control judge."""

    model: str | None = option(None, "model folder, hub name or lab; not needed by oracle and random")  # pyright: ignore
    input: str = option("-", "rows with responses: a file in any accepted format, lab, or - for JSONL on stdin")
    out: str = option("-", "JSONL file to append to, - for stdout", changes_result=False)
    seed: int = option(0, "seed of the random judge", ge=0)
    limit: int = option(0, "judge the first N rows; 0: all", ge=0)


class SelectConfig(SelectOptions):
    """Turn scored responses into training pairs."""

    input: str = option("-", "scored rows: a JSONL file, - for stdin")
    out: str = option("-", "JSONL file to append to, - for stdout", changes_result=False)


class TrainConfig(ModelOptions, TrainOptions):
    """Train a model on selected pairs."""

    input: str = option("-", "selected rows, or your own pairs (prompt, chosen, rejected): a file, - for stdin")
    out: str = option(..., "folder for the trained model and its log", changes_result=False)
    seed: int = option(0, "seed of the order of the data and of the adapter", ge=0)


class EvaluateConfig(ModelOptions, DrawOptions, EvaluateOptions):
    """Measure a model: its answers where the right one is known, and its judge."""

    benchmark: str = option(..., "lab, lab-dev, or a file of rows with right and wrong responses or reference answers")  # pyright: ignore
    questions: str | None = option(None, "TOML file with your own wording of the questions")
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


class BenchConfig(ModelOptions, JudgeOptions):
    """Measure a judge on a benchmark: how often it prefers the right response, and how sure that is."""

    model: str | None = option(None, "model folder, hub name or lab; not needed by oracle and random")  # pyright: ignore
    benchmark: str = option(..., "pairs, lab, lab-dev, or a file with right and wrong responses")
    data: str | None = option(None, "file, folder or hub name to read the benchmark from; none: its own on the hub")
    compare_separate: int = option(0, "with --in-place: rows judged with the separate question too; 0: none", ge=0)
    out: str = option(..., "folder for the judged rows and the results", changes_result=False)
    seed: int = option(0, "seed of everything that is drawn", ge=0)
    limit: int = option(0, "judge N rows only, picked by a hash of their ids; 0: all", ge=0)


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
    """`SampleConfig` -> `sample`."""
    return kind.__name__.removesuffix("Config").lower()


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
