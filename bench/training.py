"""Training: whole optimiser steps of DPO under LoRA, from selected pairs to changed weights.

Both sides start every turn from the same adapter, whose B is not zero, and must report the same losses. The clock runs
from the start of a step to its end: forward, backward, clipping, AdamW.
"""

from __future__ import annotations

import random
import tempfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from peft import LoraConfig, get_peft_model
from torch.utils.data import Subset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from bench import models, operations
from bench.machine import LIMIT_WAY
from bench.models import SHAPES
from bench.operations import Lengths
from bench.ways import Place, Run, Turn, Way, synchronise, to_close
from selfjudge.forward import causal_lm
from selfjudge.memory import tokens_per_row
from selfjudge.models import ModelSource, load_model
from selfjudge.preferences import Preference
from selfjudge.steps.train import TOKENS_AT_ONCE
from selfjudge.trainer import Objective, Policy, PreferenceTrainer, without_adapter

BETA = 0.1
RANK, ALPHA = 16, 32
LEARNING_RATE = 1e-4
ADAPTER_SIZE = 0.05
TRL_DEFAULTS = "TRL, defaults"
TRL_TUNED = "TRL, tuned"
OURS = "selfjudge"


@dataclass(frozen=True)
class Training:
    """Sizes; a response has between half of `response_tokens` and all of them.

    With more than two responses all their pairs are trained on. `steps` optimiser steps are one turn.
    """

    shape: str
    prompts_per_step: int
    prompt_tokens: int
    response_tokens: int
    num_responses: int = 2
    steps: int = 2

    @property
    def pairs_per_prompt(self) -> int:
        """Each response against each other one."""
        return self.num_responses * (self.num_responses - 1) // 2


@dataclass(frozen=True)
class Ranked:
    """A prompt and its responses, best first, as text of one token per word."""

    prompt: str
    responses: tuple[str, ...]


def rows(work: Training) -> list[Ranked]:
    """Random text, the same for every way: its log-probabilities are no more alike than its words."""
    numbers, size = random.Random(0), SHAPES[work.shape].vocab_size

    def response() -> str:
        return models.words(numbers.randint(work.response_tokens // 2, work.response_tokens), numbers, size)

    return [
        Ranked(models.words(work.prompt_tokens, numbers, size), tuple(response() for _ in range(work.num_responses)))
        for _ in range(work.prompts_per_step * work.steps)
    ]


def turn_of(work: Training, clock: StepClock) -> Turn:
    """A turn with the operations that its steps need; the end token belongs to the response."""
    trees = [Lengths(work.prompt_tokens, tuple(len(r.split()) + 1 for r in row.responses)) for row in rows(work)]
    pairs = len(trees) * work.pairs_per_prompt
    flops = operations.lora_step(SHAPES[work.shape], trees)
    return Turn(sum(clock.seconds), pairs, tuple(clock.losses), flops=flops)


class StepClock(TrainerCallback):
    """Seconds and loss of each optimiser step."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self._start = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """After the batch was put together."""
        synchronise(self.device)
        self._start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """After the optimiser changed the weights."""
        synchronise(self.device)
        self.seconds.append(time.perf_counter() - self._start)

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        """The trainer's own loss."""
        if "loss" in logs:
            self.losses.append(logs["loss"])


def lora() -> LoraConfig:
    """An adapter on all linear layers."""
    return LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")


@torch.no_grad()
def reset_adapter(model: Any) -> None:
    """The same random A and B in every process: with B = 0 any loss is log 2 at the first step, right or wrong."""
    for name, weight in model.named_parameters():
        if "lora_" in name:
            generator = torch.Generator().manual_seed(zlib.crc32(name[name.index("layers.") :].encode()))
            weight.copy_(torch.randn(weight.shape, generator=generator) * ADAPTER_SIZE)


def common_arguments(place: Place, work: Training, folder: str) -> dict[str, Any]:
    """What both trainers are told."""
    on_cpu = place.device == "cpu"
    return {
        "output_dir": folder,
        "max_steps": work.steps,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "weight_decay": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
        "seed": 0,
    }


# TRL


def trl_defaults(place: Place, work: Training) -> Run:
    """Gradient checkpointing on, reference computed in the step; float32 where the comparison is."""
    return _trl(place, work)


def trl_tuned(place: Place, work: Training) -> Run:
    """Reference computed once before training, no gradient checkpointing."""
    return _trl(place, work, precompute_ref_log_probs=True, gradient_checkpointing=False)


def _trl(place: Place, work: Training, **options: Any) -> Run:
    trainer = trl_trainer(place, work, pairs(work), **options)

    def run(turn: int) -> Turn:  # noqa: ARG001
        reset_adapter(trainer.model)
        trainer.optimizer, trainer.lr_scheduler = None, None  # a second `train` would go on with their state
        return turn_of(work, _timed_training(trainer, place))

    return run


def pairs(work: Training) -> list[dict[str, str]]:
    """Every pair of responses as TRL reads it."""
    return [
        {"prompt": row.prompt, "chosen": f" {better}", "rejected": f" {worse}"}
        for row in rows(work)
        for better, worse in combinations(row.responses, 2)
    ]


def trl_trainer(place: Place, work: Training, dataset: Sequence[dict[str, str]], **options: Any) -> Any:
    """A DPOTrainer; several pairs of one prompt are one batch, and the prompts of a step are accumulated."""
    from trl import DPOConfig, DPOTrainer

    disable_progress_bar()
    several = work.pairs_per_prompt > 1
    arguments = DPOConfig(
        **common_arguments(place, work, to_close.enter_context(tempfile.TemporaryDirectory())),
        per_device_train_batch_size=work.pairs_per_prompt if several else work.prompts_per_step,
        gradient_accumulation_steps=work.prompts_per_step if several else 1,
        beta=BETA,
        max_length=models.CONTEXT,
        bf16=place.dtype == "bfloat16",
        **options,
    )
    model, tokenizer = models.load(place)
    trainer = DPOTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(list(dataset)),
        processing_class=tokenizer,
        peft_config=lora(),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _timed_training(trainer: Trainer, place: Place) -> StepClock:
    steps = StepClock(place.device)
    trainer.add_callback(steps)
    trainer.train()
    trainer.remove_callback(steps)
    return steps


# selfjudge


def ours(place: Place, work: Training) -> Run:
    """PreferenceTrainer with the settings of `selfjudge train`, reference computed before training."""
    source = ModelSource(place.folder, place.device, place.dtype, threads=place.threads)
    model: Any = get_peft_model(load_model(source, trainable=True)[0], lora())
    policy = _policy(model, place, work)
    with policy.forward, without_adapter(model):
        preferences = list(policy.reference(_preferences(place, work), at_once=32))

    def run(turn: int) -> Turn:  # noqa: ARG001
        reset_adapter(model)
        policy = _policy(model, place, work)
        with policy.forward, tempfile.TemporaryDirectory() as folder:
            arguments = _arguments(place, work, preferences, folder)
            trainer = PreferenceTrainer(policy, _all(preferences), _all([]), arguments, _ignore)
            return turn_of(work, _timed_training(trainer, place))

    return run


def _ignore(step: int, log: dict[str, float]) -> None:
    """The steps' own clock reads the losses."""


def _all(preferences: Sequence[Preference]) -> Subset[Preference]:
    return Subset(preferences, range(len(preferences)))


def _policy(model: Any, place: Place, work: Training) -> Policy:
    compute = None if place.dtype == "float32" else place.torch_dtype
    objective = Objective("dpo", {"beta": BETA}, tokens_per_row(causal_lm(model)), compute)
    return Policy(model, work.prompt_tokens + work.response_tokens + 1, objective)


def _preferences(place: Place, work: Training) -> list[Preference]:
    tokenizer = models.AutoTokenizer.from_pretrained(place.folder)
    unknown = tuple(float("nan") for _ in range(work.num_responses))
    strengths = tuple(float(-k) for k in range(work.num_responses))
    return [
        Preference(
            str(number),
            tuple(tokenizer.encode(row.prompt)),
            tuple((*tokenizer.encode(text), models.END_ID) for text in row.responses),
            strengths,
            unknown,
        )
        for number, row in enumerate(rows(work))
    ]


def _arguments(place: Place, work: Training, preferences: Sequence[Preference], folder: str) -> TrainingArguments:
    longest = max(preference.tree.num_tokens for preference in preferences)
    at_once = max(1, min(work.prompts_per_step, TOKENS_AT_ONCE[place.device.split(":")[0]] // longest))
    micro = max(size for size in range(1, at_once + 1) if work.prompts_per_step % size == 0)
    return TrainingArguments(
        **common_arguments(place, work, str(Path(folder))),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=work.prompts_per_step // micro,
        remove_unused_columns=False,
        label_names=[],
    )


WAYS: dict[str, Way] = {TRL_DEFAULTS: trl_defaults, TRL_TUNED: trl_tuned, OURS: ours, **LIMIT_WAY}
