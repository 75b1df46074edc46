"""The transformers backend: any local causal language model, on a CPU or a GPU, with or without a LoRA adapter."""

from __future__ import annotations

import gc
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import Any, NamedTuple

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor
from transformers import GenerationConfig

from selfjudge.backends import (
    BackendOptions,
    FollowUp,
    LabelRequest,
    LabelResult,
    SampleRequest,
    SampleResult,
    Sampling,
)
from selfjudge.backends.prompts import Asked, LabelIds, Prompt, Prompts, Question
from selfjudge.errors import ModelError
from selfjudge.forward import RowForward, causal_lm
from selfjudge.head import label_logprobs, output_head
from selfjudge.kv_cache import takes_rows
from selfjudge.memory import TokenBudget, tokens_per_row
from selfjudge.models import ModelSource, context_length, load_model
from selfjudge.records import Response
from selfjudge.rendering import Renderer
from selfjudge.rows import Branch, Row, trees_of
from selfjudge.sampling import Running, draw, hidden_behind

PLANNED_TOGETHER = 1024  # prompts sorted by length together: little waste, and an output about in the input's order
POOL_BATCHES = 4  # what is sampled anew after an interruption; ended samples are replaced within a pool only
MOST_SEQUENCES = 1024
LOGITS_CPU = 1 << 23  # sequences x vocabulary of one step: larger ones leave the processor's caches and are slower
CACHE_BYTES_CPU = 2 << 30


class Ended(NamedTuple):
    """A sample that is complete: its row in the batch, its place among the samples of its pool."""

    row: int
    place: int
    prompt: Prompt
    response: Response


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
        self.most_sequences = MOST_SEQUENCES
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
        fit = [index for index, one in enumerate(asked) if one.reason is None]
        read = dict(zip(fit, self._read([asked[i] for i in fit], [requests[i].group for i in fit]), strict=True))
        return [read.get(i) or LabelResult.unread(requests[i], str(one.reason)) for i, one in enumerate(asked)]

    def _read(self, asked: Sequence[Asked], names: Sequence[str]) -> list[LabelResult]:
        groups = groupby(range(len(asked)), key=lambda i: (names[i], asked[i].ids[0]))
        trees = [tree for _, members in groups for tree in trees_of([asked[i].ids for i in members])]
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
                found[branch.index] = LabelResult.of(tuple(values), total, asked[branch.index].truncated)
        return found

    # Samples

    @torch.no_grad()
    def generate(
        self, requests: Iterable[SampleRequest], sampling: Sampling, done: Container[str] = ()
    ) -> Iterator[list[SampleResult]]:
        """See `Backend`. Pools of batches are planned over windows of the requests, the same ones on a restart."""
        self.prompts.check(requests, sampling)
        remaining = iter(requests)
        while window := [self.prompts.of(request, sampling) for request in islice(remaining, PLANNED_TOGETHER)]:
            if refused := [prompt.refusal for prompt in window if prompt.reason]:
                yield refused
            for pool, places in self._plan([prompt for prompt in window if not prompt.reason], sampling):
                if not all(prompt.request.key in done for prompt in pool):
                    yield from self._sample_pool(pool, places, sampling)

    def _plan(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterable[tuple[list[Prompt], int]]:
        """Pools of prompts, each with the number of sequences to sample at a time."""
        pool: list[Prompt] = []
        places = 0
        for prompt in sorted(prompts, key=lambda p: (len(p.ids), p.request.key)):
            fitting = self._batch_limit(len(prompt.ids) + sampling.max_new_tokens)
            if pool and (len(pool) + 1) * sampling.num_responses > POOL_BATCHES * fitting:
                yield pool, places
                pool = []
            pool.append(prompt)
            places = fitting
        if pool:
            yield pool, places

    def _batch_limit(self, length: int) -> int:
        """How many sequences of `length` tokens to sample at a time: as their cache and one step's logits allow."""
        if self.options.sample_batch:
            return min(self.most_sequences, self.options.sample_batch)
        text = self.causal.config.get_text_config()
        all_heads = getattr(text, "num_attention_heads", 0)  # none: its cache does not grow with the tokens
        heads = getattr(text, "num_key_value_heads", None) or all_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // max(1, all_heads)
        per_sequence = 2 * text.num_hidden_layers * heads * width * self.causal.dtype.itemsize * length
        most = self.most_sequences if self.device.type == "cuda" else LOGITS_CPU // self.head.weight.shape[0]
        return max(1, min(self.most_sequences, most, self._cache_bytes() // max(1, per_sequence)))

    def _cache_bytes(self) -> int:
        if self.device.type != "cuda":
            return CACHE_BYTES_CPU
        return torch.cuda.get_device_properties(self.device).total_memory // 3

    def _sample_pool(self, pool: Sequence[Prompt], places: int, sampling: Sampling) -> Iterator[list[SampleResult]]:
        """Samples `places` sequences at a time; with half of them, for good, where memory runs out."""
        given = 0
        while given < len(pool):
            try:
                for ready in self._sample_at_once(pool[given:], places, sampling):
                    given += len(ready)
                    yield ready
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                if places <= sampling.num_responses:
                    raise ModelError(
                        f"out of memory sampling {sampling.num_responses} responses to one prompt; lower "
                        "--num-responses, --max-new-tokens or --max-length"
                    ) from error
            if given < len(pool):
                places = self._fewer(places)

    def _fewer(self, places: int) -> int:
        gc.collect()
        clear_device_cache()
        self.most_sequences = places // 2
        self.options.say(f"out of memory with {places} sequences at a time; going on with {self.most_sequences}")
        return self.most_sequences

    def _sample_at_once(self, pool: Sequence[Prompt], places: int, sampling: Sampling) -> Iterator[list[SampleResult]]:
        """Yields prompts whose responses are all there, in the pool's order."""
        found: dict[int, tuple[Response, LabelResult | None]] = {}
        count, given = sampling.num_responses, 0
        for running in self._draw(pool, places, sampling):
            ended = list(self._ended(running, pool, count))
            answers = dict(self._answers(running, [sample for sample in ended if sample.prompt.request.follow_up]))
            found.update((sample.place, (sample.response, answers.get(sample.place))) for sample in ended)
            ready: list[SampleResult] = []
            while all(index in found for index in range(given * count, (given + 1) * count)):
                drawn = [found.pop(index) for index in range(given * count, (given + 1) * count)]
                ready.append(_result(pool[given], drawn, takes_rows(running.cache)))
                given += 1
            if ready:
                yield ready

    def _draw(self, pool: Sequence[Prompt], places: int, sampling: Sampling) -> Iterator[Running]:
        width = max(len(prompt.ids) for prompt in pool)
        pad = self.causal.generation_config.pad_token_id  # pyright: ignore[reportOptionalMemberAccess]
        ids = torch.tensor([[pad] * (width - len(p.ids)) + p.ids for p in pool], device=self.device)
        mask = torch.tensor([[0] * (width - len(p.ids)) + [1] * len(p.ids) for p in pool], device=self.device)
        streams = [[sampling.stream(p.request.key, k) for k in range(sampling.num_responses)] for p in pool]
        generate: Any = self.causal.generate
        return generate(
            ids,
            attention_mask=mask,
            generation_config=self._generation_config(sampling),
            custom_generate=draw,
            streams=torch.tensor(streams, device=self.device),
            places=places,
        )

    def _ended(self, running: Running, pool: Sequence[Prompt], count: int) -> Iterator[Ended]:
        rows = running.ended.nonzero()[:, 0]
        parts = (rows, running.sample[rows], running.tokens[rows], running.length[rows], running.logprob[rows])
        for row, place, drawn, length, logprob in zip(*(part.tolist() for part in parts), strict=True):
            tokens = drawn[:length]
            finished = tokens[-1] in self.ends
            yield Ended(row, place, pool[place // count], self.prompts.response(tokens, logprob, finished))

    # Answers to follow-up questions

    def _answers(self, running: Running, ended: Sequence[Ended]) -> Iterator[tuple[int, LabelResult]]:
        """From the cache where it can be continued, else from the whole sequences once more."""
        if not takes_rows(running.cache):
            results = self._read([self._asked(sample) for sample in ended], [str(sample.place) for sample in ended])
            yield from zip((sample.place for sample in ended), results, strict=True)
            return
        for follow_up in dict.fromkeys(_question(sample) for sample in ended):
            question = self.prompts.question(follow_up)
            remaining = (sample for sample in ended if _question(sample) == follow_up)
            while chunk := list(islice(remaining, max(1, self.budget.tokens // (len(question.ids) + 1)))):
                yield from self._continued(running, chunk, question)

    def _continued(
        self, running: Running, samples: Sequence[Ended], question: Question
    ) -> Iterator[tuple[int, LabelResult]]:
        rest = [[*_not_computed(sample.response), *question.ids] for sample in samples]
        hidden = hidden_behind(self.causal, running, [sample.row for sample in samples], rest)
        logprobs, mass = label_logprobs(self.head, hidden, question.label_ids)
        for sample, values, total in zip(samples, logprobs.tolist(), mass.tolist(), strict=True):
            yield sample.place, LabelResult.of(tuple(values), total, False)

    def _asked(self, sample: Ended) -> Asked:
        question = self.prompts.question(_question(sample))
        response = sample.response.token_ids or ()
        kept = response[:-1] if sample.response.finished else response
        return Asked([*sample.prompt.ids, *kept, *question.ids], question.label_ids, truncated=False, with_mass=True)

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


def _question(sample: Ended) -> FollowUp:
    assert sample.prompt.request.follow_up is not None
    return sample.prompt.request.follow_up


def _not_computed(response: Response) -> tuple[int, ...]:
    """The last token, which no forward pass has seen; an end token is left out, the question brings its own."""
    return () if response.finished else (response.token_ids or ())[-1:]


def _result(prompt: Prompt, drawn: Sequence[tuple[Response, LabelResult | None]], from_cache: bool) -> SampleResult:
    responses = tuple(response for response, _ in drawn)
    answers = tuple(answer for _, answer in drawn if answer is not None)
    return SampleResult(prompt.request.key, tuple(prompt.ids), responses, answers, from_cache, prompt.truncated)
