"""What a lab model can do: how often it answers rightly, and how often it judges rightly.

    >>> measure(model, tokenizer, questions_of("dev"))["sampled"]["all"]
    0.49

Every figure is a share of questions, samples or pairs between 0 and 1, for all of them and for each category.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from selfjudge.lab.rows import ask_judge, ask_model, token_id
from selfjudge.lab.world import Question
from selfjudge.records import CATEGORIES

SAMPLES = 8
MAX_NEW_TOKENS = 16
Figures = dict[str, dict[str, float]]


def measure(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: Sequence[Question], seed: int = 0
) -> Figures:
    """Figure -> `all` and each category -> share."""
    torch.manual_seed(seed)
    return {**_generator(model, tokenizer, questions), **_judge(model, tokenizer, questions)}


def _generator(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: Sequence[Question]) -> Figures:
    greedy = _hits(questions, answers(model, tokenizer, questions))
    sampled = _hits(questions, answers(model, tokenizer, questions, samples=SAMPLES))  # (questions, samples)
    return {
        "greedy": _shares(questions, greedy),
        "sampled": _shares(questions, sampled),
        f"right_within_{SAMPLES}": _shares(questions, sampled.any(dim=1)),
    }


def _judge(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: Sequence[Question]) -> Figures:
    believed = [question for question in questions if question.misconception is not None]
    right, mass = judge(model, tokenizer, questions, [question.right for question in questions])
    other, _ = judge(model, tokenizer, questions, [question.other for question in questions])
    right_of_believed, _ = judge(model, tokenizer, believed, [question.right for question in believed])
    misconception, _ = judge(model, tokenizer, believed, [question.misconception or "" for question in believed])
    over_misconception, over_other = right_of_believed > misconception, right > other
    return {
        "judge_right_over_misconception": _shares(believed, over_misconception),
        "judge_right_over_other": _shares(questions, over_other),
        "judge_right_over_wrong": _shares([*believed, *questions], torch.cat([over_misconception, over_other])),
        "label_mass": _shares(questions, mass),
    }


def _hits(questions: Sequence[Question], texts: Sequence[Sequence[str]]) -> Tensor:
    """Which answers are right; (questions, answers of one question)."""
    return torch.tensor([[text == q.right for text in told] for q, told in zip(questions, texts, strict=True)])


@torch.no_grad()
def answers(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: Sequence[Question], samples: int = 0
) -> list[list[str]]:
    """Per question `samples` answers at temperature 1, or with `samples=0` the one greedy answer."""
    prompts = [ask_model(tokenizer, question) for question in questions]
    inputs = tokenizer(prompts, add_special_tokens=False, return_tensors="pt", padding=True, padding_side="left")
    sampling: dict[str, Any] = {"do_sample": True, "num_return_sequences": samples, "top_k": 0, "temperature": 1.0}
    generate: Any = model.generate  # pyright: ignore[reportAttributeAccessIssue]  # its stub rejects every model
    token_ids: Tensor = generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=MAX_NEW_TOKENS,
        **(sampling if samples else {"do_sample": False}),
    )
    continued = token_ids[:, inputs["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(continued, skip_special_tokens=True)
    per_question = max(samples, 1)
    return [texts[start : start + per_question] for start in range(0, len(texts), per_question)]


@torch.no_grad()
def judge(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: Sequence[Question], answers: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Log-odds of Yes against No in nats, and the probability on both together; (questions,) each."""
    prompts = [ask_judge(tokenizer, question, answer) for question, answer in zip(questions, answers, strict=True)]
    inputs = tokenizer(prompts, add_special_tokens=False, return_tensors="pt", padding=True)
    last = inputs["attention_mask"].sum(dim=1) - 1
    hidden = model.model(inputs["input_ids"]).last_hidden_state[torch.arange(len(prompts)), last]  # (questions, width)
    yes, no = token_id(tokenizer, "Yes"), token_id(tokenizer, "No")
    logps = model.lm_head(hidden).float().log_softmax(dim=-1)  # (questions, vocabulary)
    return logps[:, yes] - logps[:, no], logps[:, [yes, no]].exp().sum(dim=1)


def _shares(questions: Sequence[Question], values: Tensor) -> dict[str, float]:
    """Mean of `values` (questions, ...), over all questions and within each category."""
    means = {"all": values.float().mean().item()}
    for category in CATEGORIES:
        within = torch.tensor([question.category == category for question in questions])
        means[category] = values[within].float().mean().item()
    return {name: round(mean, 4) for name, mean in means.items()}
