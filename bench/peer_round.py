"""One round of the usual pieces, `python -m bench.peer_round`: batched `generate`, the reference's scoring, TRL's DPO.

The same prompts, responses, tokens and steps as `selfjudge align --rounds 1`, and the same question to the judge.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig

from bench import models, sampling, scoring
from bench.ways import Place
from selfjudge.models import quiet_libraries
from selfjudge.questions import load_questions
from selfjudge.records import Message

CATEGORY = "chat"


@dataclass(frozen=True)
class Options:
    """What a round needs to know; `batch` prompts are sampled at a time."""

    place: Place
    prompts: str
    out: str
    num_responses: int
    new_tokens: int
    batch: int
    batch_size: int


@torch.no_grad()
def sampled(model: Any, tokenizer: Any, prompts: Sequence[str], options: Options) -> list[list[str]]:
    """K responses to each prompt, one call of `generate` per batch of prompts."""
    found: list[str] = []
    work = sampling.Sampling("", len(prompts), 0, options.new_tokens, options.num_responses)
    for start in range(0, len(prompts), options.batch):
        inputs = tokenizer(
            prompts[start : start + options.batch], return_tensors="pt", padding=True, padding_side="left"
        ).to(model.device)
        output = model.generate(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            generation_config=sampling.generation_config(work, options.num_responses),
        )
        found += tokenizer.batch_decode(output[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    return [found[i : i + options.num_responses] for i in range(0, len(found), options.num_responses)]


@torch.no_grad()
def pair(model: Any, tokenizer: Any, prompt: str, responses: Sequence[str]) -> dict[str, str]:
    """Best against worst by the reference's scores."""
    asked = [_question(tokenizer, prompt, response) for response in responses]
    scores = [scoring.reference_log_odds(model, tokenizer, text) for text in asked]
    best, worst = max(range(len(scores)), key=scores.__getitem__), min(range(len(scores)), key=scores.__getitem__)
    return {"prompt": prompt, "chosen": f" {responses[best]}", "rejected": f" {responses[worst]}"}


def _question(tokenizer: Any, prompt: str, response: str) -> str:
    messages = load_questions(None).separate((Message("user", prompt),), response, CATEGORY)
    turns = [{"role": message.role, "content": message.content} for message in messages]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def train(model: Any, tokenizer: Any, pairs: Sequence[dict[str, str]], options: Options) -> None:
    """One epoch of tuned TRL with the learning rate and adapter of `selfjudge align`."""
    from trl import DPOConfig, DPOTrainer

    on_cpu = options.place.device == "cpu"
    arguments = DPOConfig(
        output_dir=options.out,
        per_device_train_batch_size=options.batch_size,
        num_train_epochs=1,
        learning_rate=5e-5,
        lr_scheduler_type="cosine",
        max_length=models.CONTEXT,
        precompute_ref_log_probs=True,
        gradient_checkpointing=False,
        bf16=options.place.dtype == "bfloat16",
        save_strategy="no",
        report_to="none",
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
    )
    trainer = DPOTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(list(pairs)),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    steps = math.ceil(len(pairs) / options.batch_size)
    if trainer.train().global_step != steps:
        raise RuntimeError(f"TRL made {trainer.state.global_step} steps instead of {steps}")
    trainer.save_model(options.out)


def main() -> None:
    """Sample, score, select, train."""
    options = _options()
    torch.set_num_threads(options.place.threads)
    quiet_libraries()
    rows = [json.loads(line) for line in Path(options.prompts).read_text().splitlines()]
    prompts = [row["prompt"] for row in rows]
    model, tokenizer = models.load(options.place)
    responses = sampled(model, tokenizer, prompts, options)
    pairs = [pair(model, tokenizer, *both) for both in zip(prompts, responses, strict=True)]
    train(model, tokenizer, pairs, options)


def _options() -> Options:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "prompts", "out", "device", "dtype"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("threads", "num-responses", "new-tokens", "batch", "batch-size"):
        parser.add_argument(f"--{name}", type=int, required=True)
    given = vars(parser.parse_args())
    place = Place(given.pop("model"), given.pop("device"), given.pop("dtype"), given.pop("threads"))
    return Options(place=place, **given)


if __name__ == "__main__":
    main()
