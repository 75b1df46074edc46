"""The transformers backend: any local causal language model, on a CPU or a GPU, with or without a LoRA adapter."""

from __future__ import annotations

import gc
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from selfjudge.backends import (
    BackendOptions,
    LabelRequest,
    LabelResult,
    SampleRequest,
    SampleResult,
    Sampling,
)
from selfjudge.backends.prompts import Asked, LabelIds, Prompt, Prompts
from selfjudge.forward import RowForward, causal_lm
from selfjudge.head import label_logprobs, output_head
from selfjudge.memory import TokenBudget, tokens_per_row
from selfjudge.models import ModelSource, context_length, load_model
from selfjudge.records import Response
from selfjudge.rendering import Renderer
from selfjudge.rows import Branch, Row, tree_of
from selfjudge.sampling import Drawn, draw

PLANNED_TOGETHER = 1024  # prompts sorted by length together: little waste, and an output about in the input's order
CACHE_BYTES_CPU = 2 << 30


class HFBackend:
    """See `selfjudge.backends.Backend`."""

    def __init__(self, model: str, options: BackendOptions) -> None:
        source = ModelSource(model, options.device, options.dtype, options.trust_remote_code, options.threads)
        self.name = model
        self.options = options
        self.model, tokenizer = load_model(source)
        self.renderer = Renderer(tokenizer, model, options.thinking)
        self.device = source.torch_device()
        self.causal = causal_lm(self.model)
        named: Any = self.causal.generation_config.eos_token_id
        self.ends = sorted({*named, self.renderer.end_of_turn()})
        self.head = output_head(self.causal)
        self.prompts = Prompts(
            self.renderer,
            model,
            self.causal.get_input_embeddings().num_embeddings,  # pyright: ignore[reportArgumentType]
            min(options.max_length or 1 << 30, context_length(self.model)),
        )
        self.budget = TokenBudget(options.token_budget or tokens_per_row(self.causal), options.say)
        self._unpacked_said = False

    def close(self) -> None:
        """Frees the model's memory."""
        del self.model, self.causal, self.head
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # Labels

    @torch.no_grad()
    def label_logprobs(self, requests: Sequence[LabelRequest]) -> list[LabelResult]:
        """See `Backend`. One packed row after the other; neighbours of one group share their prefix."""
        asked = [self.prompts.ask(request) for request in requests]
        groups = groupby(range(len(asked)), key=lambda i: (requests[i].group, asked[i].ids[0]))
        trees = [tree_of([asked[i].ids for i in members]) for _, members in groups]
        results: dict[int, LabelResult] = {}
        with RowForward(self.model, max((len(a.ids) for a in asked), default=1)) as forward:
            self._say_unpacked(forward)
            for found in self.budget.compute(trees, lambda row: self._read_row(row, forward(row), asked)):
                results.update(found)
        return [results[i] for i in range(len(asked))]

    def _say_unpacked(self, forward: RowForward) -> None:
        if forward.unpacked_because and not self._unpacked_said:
            self.options.say(f"{self.name}: no packed rows, because {forward.unpacked_because}")
            self._unpacked_said = True

    def _read_row(self, row: Row, hidden: Tensor, asked: Sequence[Asked]) -> dict[int, LabelResult]:
        def kind(branch: Branch) -> tuple[LabelIds, bool]:
            return asked[branch.index].label_ids, asked[branch.index].with_mass

        found: dict[int, LabelResult] = {}
        for (label_ids, with_mass), members in groupby(sorted(row.branches, key=kind), key=kind):
            branches = list(members)
            last = torch.tensor([branch.span.stop - 1 for branch in branches], device=hidden.device)
            logprobs, mass = label_logprobs(self.head, hidden[last], label_ids, with_mass)
            for branch, values, total in zip(branches, logprobs.tolist(), mass.tolist(), strict=True):
                found[branch.index] = LabelResult(tuple(values), total, asked[branch.index].truncated)
        return found

    # Samples

    @torch.no_grad()
    def generate(
        self, requests: Iterable[SampleRequest], sampling: Sampling, done: Container[str] = ()
    ) -> Iterator[list[SampleResult]]:
        """See `Backend`. Batches are planned over windows of the requests, the same ones on a restart."""
        self.prompts.check(requests, sampling)
        remaining = iter(requests)
        while window := [self.prompts.of(request) for request in islice(remaining, PLANNED_TOGETHER)]:
            for batch in self._plan(window, sampling):
                if not all(prompt.request.key in done for prompt in batch):
                    yield self._sample_batch(batch, sampling)

    def _plan(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterable[list[Prompt]]:
        batch: list[Prompt] = []
        for prompt in sorted(prompts, key=lambda p: (len(p.ids), p.request.key)):
            length = len(prompt.ids) + sampling.max_new_tokens
            if batch and (len(batch) + 1) * sampling.num_responses > self._batch_limit(length):
                yield batch
                batch = []
            batch.append(prompt)
        if batch:
            yield batch

    def _batch_limit(self, length: int) -> int:
        """How many sequences of `length` tokens to sample at a time."""
        if self.options.sample_batch:
            return self.options.sample_batch
        text = self.causal.config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        per_token = 2 * text.num_hidden_layers * heads * width * self.causal.dtype.itemsize
        return max(1, min(1024, self._cache_bytes() // (per_token * length)))

    def _cache_bytes(self) -> int:
        if self.device.type != "cuda":
            return CACHE_BYTES_CPU
        return torch.cuda.get_device_properties(self.device).total_memory // 3

    def _sample_batch(self, batch: Sequence[Prompt], sampling: Sampling) -> list[SampleResult]:
        width = max(len(prompt.ids) for prompt in batch)
        pad = self.causal.generation_config.pad_token_id  # pyright: ignore[reportOptionalMemberAccess]
        ids = torch.tensor([[pad] * (width - len(p.ids)) + p.ids for p in batch], device=self.device)
        mask = torch.tensor([[0] * (width - len(p.ids)) + [1] * len(p.ids) for p in batch], device=self.device)
        generate: Any = self.causal.generate
        drawn: Drawn = generate(
            ids,
            attention_mask=mask,
            generation_config=self._generation_config(sampling),
            custom_generate=draw,
            streams=torch.tensor(
                [[sampling.stream(p.request.key, k) for k in range(sampling.num_responses)] for p in batch],
                device=self.device,
            ),
        )
        rows = list(zip(drawn.tokens.tolist(), drawn.logprobs.tolist(), strict=True))
        count = sampling.num_responses
        return [
            SampleResult(
                p.request.key, tuple(p.ids), tuple(self._response(*r) for r in rows[i * count : (i + 1) * count])
            )
            for i, p in enumerate(batch)
        ]

    def _generation_config(self, sampling: Sampling) -> GenerationConfig:
        own = self.causal.generation_config
        filters = {"temperature": float(sampling.temperature), "top_p": sampling.top_p, "top_k": sampling.top_k}
        if sampling.min_p:
            filters["min_p"] = sampling.min_p
        return GenerationConfig(
            do_sample=sampling.temperature > 0,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=self.ends,
            pad_token_id=own.pad_token_id,
            **(filters if sampling.temperature > 0 else {}),
        )

    def _response(self, tokens: list[int], logprobs: list[float]) -> Response:
        stop = next((i for i, token in enumerate(tokens) if token in self.ends), None)
        kept = tokens if stop is None else tokens[: stop + 1]
        text = self.renderer.decode(kept if stop is None else kept[:-1])
        return Response(text, tuple(kept), sum(logprobs[: len(kept)]), finished=stop is not None)
