"""A reward model: a sequence classifier with one output, in transformers, on a CPU or a GPU.

    model = RewardModel("path/to/reward-model", BackendOptions(device="cpu"))
    model.score([Conversation("1", (Message("user", "What is 2 + 2?"),), "4")])     # [(logit, truncated)]

Conversations are laid out by the model's own chat template and scored in right-padded batches of about one length; on a
CPU one at a time, where padding costs more than it saves. The logits are raw: their sigmoid reaches exactly 1.0 at 17.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from selfjudge.backends import BackendOptions, Conversation
from selfjudge.backends.prompts import cut_to_fit
from selfjudge.errors import DataError, ModelError
from selfjudge.forward import causal_lm
from selfjudge.memory import Size, TokenBudget, tokens_per_row
from selfjudge.models import ModelSource, context_length, load_reward_model
from selfjudge.records import Message
from selfjudge.rendering import Renderer

MOST_TOGETHER = {"cpu": 1}
"""Sequences in a batch, by kind of device; elsewhere as many as the token budget allows."""


class _Shown(NamedTuple):
    ids: list[int]
    truncated: bool


class RewardModel:
    """See `selfjudge.backends.Scorer`."""

    def __init__(self, model: str, options: BackendOptions) -> None:
        source = ModelSource(model, options.device, options.dtype, options.trust_remote_code, options.threads)
        self.name = model
        self.model, tokenizer = load_reward_model(source)
        self.renderer = Renderer(tokenizer, model)
        self.device = source.torch_device()
        self.classifier = causal_lm(self.model)
        self.num_embeddings = int(self.classifier.get_input_embeddings().num_embeddings)  # pyright: ignore
        self.max_length = min(options.max_length or 1 << 30, context_length(self.model))
        self.budget = TokenBudget(options.token_budget or tokens_per_row(self.classifier), options.say)
        self.most_together = MOST_TOGETHER.get(self.device.type, 1 << 30)
        own: Any = self.classifier.config.get_text_config().pad_token_id
        self._pad = own if own is not None and 0 <= own < self.num_embeddings else None

    def close(self) -> None:
        """Frees the model's memory."""
        del self.model, self.classifier
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def score(self, conversations: Sequence[Conversation]) -> list[tuple[float, bool]]:
        """See `Scorer`."""
        shown = [self._show(conversation) for conversation in conversations]
        waiting = sorted(range(len(shown)), key=lambda index: len(shown[index].ids), reverse=True)
        logits: dict[int, float] = {}
        while waiting:
            batch = waiting[: self._fitting(len(shown[waiting[0]].ids))]
            found = self._attempt([shown[index].ids for index in batch])
            if found is not None:  # else the budget is smaller now
                logits.update(zip(batch, found, strict=True))
                waiting = waiting[len(batch) :]
        return [(logits[index], one.truncated) for index, one in enumerate(shown)]

    def _show(self, conversation: Conversation) -> _Shown:
        render = partial(self._render, conversation.messages)
        ids = self.renderer.encode(render(conversation.response))
        truncated = len(ids) > self.max_length
        if truncated:
            cut = cut_to_fit(self.renderer, render, [conversation.response], self.max_length)
            if cut is None:
                raise DataError(
                    f"{conversation.key}: the prompt alone exceeds the {self.max_length} tokens of {self.name}; remove "
                    "the row or use a model with a longer context"
                )
            ids = cut[1]
        if max(ids) >= self.num_embeddings:
            raise ModelError(
                f"model {self.name}: its tokenizer gives the id {max(ids)}, but it has only {self.num_embeddings} "
                "embeddings; tokenizer and weights do not belong together"
            )
        return _Shown(ids, truncated)

    def _render(self, messages: Sequence[Message], response: str) -> str:
        return self.renderer.text([*messages, Message("assistant", response)], answer_follows=False)

    def _fitting(self, longest: int) -> int:
        return max(1, min(self.most_together, self.budget.tokens // longest))

    def _attempt(self, batch: Sequence[list[int]]) -> list[float] | None:
        size = Size(len(batch) * len(batch[0]), len(batch), len(batch[0]))
        return self.budget.attempt(partial(self._logits, batch), size)

    @torch.no_grad()
    def _logits(self, batch: Sequence[list[int]]) -> list[float]:
        """One logit per sequence of ids, the longest of which comes first."""
        pad, width = self._padding(batch), len(batch[0])
        ids = torch.tensor([one + [pad] * (width - len(one)) for one in batch], device=self.device)
        mask = torch.tensor([[1] * len(one) + [0] * (width - len(one)) for one in batch], device=self.device)
        logits: torch.Tensor = self.model(input_ids=ids, attention_mask=mask).logits  # (B, 1)
        return logits[:, 0].float().tolist()

    def _padding(self, batch: Sequence[list[int]]) -> int:
        """The id that fills up; transformers reads the logit at the last token that is not it.

        A model without one of its own is read at the last token, so that no sequence may end with what fills up.
        """
        if self._pad is not None:
            return self._pad
        lasts = {one[-1] for one in batch}
        pad = next(number for number in range(self.num_embeddings) if number not in lasts)
        self.classifier.config.get_text_config().pad_token_id = pad
        return pad
