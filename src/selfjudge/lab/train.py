"""Pretrains a lab model from random weights, a fixed number of steps on one thread.

    >>> model = pretrain(train_tokenizer(), Recipe(steps=3), seed=0, report=print)

One step sees fresh demonstration and verification rows. Its loss is the mean cross-entropy over the demonstrated
answers, the answers quoted in verifications, and the verdicts, each with its weight.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from selfjudge.lab.muon import Muon
from selfjudge.lab.rows import END, PAD, Row, draw_rows, token_id

NO_LABEL = -100
CONTEXT_LENGTH = 512


@dataclass(frozen=True)
class Recipe:
    """Rows are per step; `warm_up` is in steps; the learning rate is flat to half of the steps, then falls to 0."""

    steps: int
    demonstrations: int = 64
    verifications: int = 96
    lr: float = 4e-3
    warm_up: int = 60
    quoted_weight: float = 0.5
    verdict_weight: float = 2.0
    max_norm: float = 1.0


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Half a million random parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=token_id(tokenizer, END),
        pad_token_id=token_id(tokenizer, PAD),
    )
    return LlamaForCausalLM(config)


def pretrain(
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    seed: int,
    report: Callable[[int, float], None],
) -> LlamaForCausalLM:
    """The trained model, in float32; `report` is called with every step's loss."""
    model, rng = new_model(tokenizer, seed), Random(seed)
    muon, adam = _optimizers(model, recipe.lr)
    for step in range(recipe.steps):
        told, verified = draw_rows(tokenizer, rng, recipe.demonstrations, recipe.verifications)
        loss = _loss(model, tokenizer, told, recipe) + _loss(model, tokenizer, verified, recipe)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_norm)
        muon.lr = adam.param_groups[0]["lr"] = recipe.lr * _schedule(step, recipe)
        muon.step()
        adam.step()
        adam.zero_grad()
        report(step, loss.item())
    return model.eval()


def _schedule(step: int, recipe: Recipe) -> float:
    """Share of the learning rate at a step."""
    return min(1.0, (step + 1) / recipe.warm_up, 2 * (1 - step / recipe.steps))


def _optimizers(model: LlamaForCausalLM, lr: float) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return Muon(matrices, lr), torch.optim.AdamW(rest, lr, betas=(0.9, 0.98), weight_decay=0.0)


def _loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[Row], recipe: Recipe) -> Tensor:
    """Mean cross-entropy of the targets plus that of the quoted answers, weighted; in nats."""
    token_ids, targets, quoted = encode(tokenizer, rows)  # (batch, seq) each
    hidden = model.model(token_ids).last_hidden_state[:, :-1]  # (batch, seq - 1, width)
    losses: list[Tensor] = []
    weight = recipe.verdict_weight if rows[0].is_verdict else 1.0
    for labels, factor in ((targets[:, 1:], weight), (quoted[:, 1:], recipe.quoted_weight)):
        known = labels != NO_LABEL
        if known.any():
            losses.append(factor * torch.nn.functional.cross_entropy(model.lm_head(hidden[known]), labels[known]))
    return torch.stack(losses).sum()


def encode(tokenizer: PreTrainedTokenizerFast, rows: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids padded on the right, the labels of the targets, those of the quoted answers; (batch, seq) each."""
    encoded = tokenizer(
        [row.prompt + row.target for row in rows],
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_tensors="pt",
        padding=True,
    )
    token_ids, starts, ends = encoded["input_ids"], *encoded["offset_mapping"].unbind(-1)
    prompt_length = torch.tensor([[len(row.prompt)] for row in rows])
    first, last = torch.tensor([row.quoted for row in rows]).split(1, dim=1)  # (batch, 1) each
    is_target, is_quoted = starts >= prompt_length, (starts >= first) & (ends <= last) & (ends > starts)
    return token_ids, token_ids.where(is_target, NO_LABEL), token_ids.where(is_quoted, NO_LABEL)


def timed_report(every: int) -> Callable[[int, float], None]:
    """Prints the mean loss of the last `every` steps and the seconds since the start."""
    start, losses = time.monotonic(), list[float]()

    def report(step: int, loss: float) -> None:
        losses.append(loss)
        if (step + 1) % every == 0:
            print(f"step {step + 1}: loss {sum(losses) / every:.3f}, {time.monotonic() - start:.0f} s", flush=True)
            losses.clear()

    return report
