"""Drawing tokens: uniforms that depend on nothing but seed, prompt, sample and step, and the draw from them.

    for running in model.generate(
        ids, attention_mask=mask, generation_config=config, custom_generate=draw, streams=streams, places=64
    ): ...                                          # running.tokens of the rows where running.ended

A sample is the same in any batch, in any order and after any restart, up to the rounding of the model's own logits: a
uniform that falls within that rounding (about 1e-6) of the border between two tokens can still fall on either side.
"""

# pyright: reportPrivateUsage=false
# (the hook of a decoding loop, `_prefill`, has no public name)

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import Cache

from selfjudge.errors import ModelError
from selfjudge.kv_cache import fresh, regroup, subset, takes_rows

BLOCK = 256  # vocabulary entries of one block of the two-level cumulative sum
ENDED_SHARE = 0.25  # of the rows, before they are taken out: taking out copies the cache of the others


def uniforms(streams: Tensor, step: Tensor | int) -> Tensor:
    """The uniform in [0, 1) of each stream at a step: (samples,) int64 -> (samples,) float64.

    SplitMix64 (Steele, Lea, Flood 2014) as a counter-based generator: the state is stream + step * odd constant.
    """
    steps = torch.as_tensor(step, device=streams.device) + 1
    state = streams + steps * _signed(0x9E3779B97F4A7C15)  # int64 wraps around, as it should
    state = (state ^ _shift_right(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shift_right(state, 27)) * _signed(0x94D049BB133111EB)
    state = state ^ _shift_right(state, 31)
    return _shift_right(state, 11).double() * 2.0**-53


def _signed(constant: int) -> int:
    constant &= (1 << 64) - 1
    return constant - (1 << 64) if constant >= 1 << 63 else constant


def _shift_right(state: Tensor, bits: int) -> Tensor:
    return (state >> bits) & ((1 << (64 - bits)) - 1)  # torch shifts the sign in; the mask takes it out


def inverse_cdf(logits: Tensor, uniform: Tensor) -> Tensor:
    """The token at which the cumulative probability passes `uniform`: (B, V), (B,) -> (B,) int64.

    Blocks are summed first, so that only one block per row needs a cumulative sum. A token of probability 0 is never
    drawn.
    """
    weights = torch.softmax(logits.float(), -1)
    weights = torch.nn.functional.pad(weights, (0, -weights.shape[1] % BLOCK)).unflatten(
        1, (-1, BLOCK)
    )  # (B, blocks, 256)
    sums = weights.sum(-1).double()
    block, rest = _pass(sums, uniform * sums.sum(-1))
    chosen = weights[torch.arange(len(weights), device=weights.device), block].double()  # (B, 256)
    token, _ = _pass(chosen, rest)
    return block * BLOCK + token


def _pass(weights: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """First index whose cumulative weight exceeds `level`, and how far `level` reaches into that weight."""
    total = weights.cumsum(-1)
    highest = torch.nextafter(total[:, -1], torch.zeros_like(level))
    index = torch.searchsorted(total, torch.minimum(level, highest)[:, None], right=True)
    before = total.gather(1, index) - weights.gather(1, index)
    return index[:, 0], (level - before[:, 0]).clamp(min=0)


def choose(logits: Tensor, filtered: Tensor, uniform: Tensor | None) -> tuple[Tensor, Tensor]:
    """(B, V) logits before and after temperature and filters -> (B,) tokens and their plain log-probabilities, nats.

    The most probable token where there is no `uniform`.
    """
    token = filtered.argmax(-1) if uniform is None else inverse_cdf(filtered, uniform)
    return token, logits.log_softmax(-1).gather(1, token[:, None])[:, 0]


@dataclass
class Running:
    """Samples being drawn, one per row. `cache` and `mask` hold the prompt and all tokens but the last one drawn."""

    cache: Cache
    mask: Tensor
    """(rows, columns): 1 where the cache holds a token of the row; 0 in the padding before it and after its end."""
    sample: Tensor
    """(rows,): prompt * samples per prompt + sample."""
    tokens: Tensor
    """(rows, max_new_tokens + 1): undefined from `length` on."""
    length: Tensor
    """(rows,): tokens drawn, an end token included."""
    logprob: Tensor
    """(rows,) float64: of the tokens under the model itself, at temperature 1 and before any filter, in nats."""
    ended: Tensor
    """(rows,) bool: nothing more is drawn, by an end token or the limit."""

    def last(self) -> Tensor:
        """The last token drawn: (rows, 1)."""
        return self.tokens.gather(1, self.length[:, None] - 1)

    def record(self, token: Tensor, logprob: Tensor, ends: Tensor) -> None:
        """One more token (rows,) in every row that has not ended."""
        self.tokens.scatter_(1, self.length[:, None], token[:, None])
        self.length += ~self.ended
        self.logprob += logprob.masked_fill(self.ended, 0)
        self.ended |= torch.isin(token, ends) | (self.length == self.tokens.shape[1] - 1)

    def regroup(self, rows: Tensor, added: Running | None) -> None:
        """Keeps `rows` (rows,) and puts those of `added` behind them; columns that no row uses are cut off."""
        masks = [self.mask[rows]] if added is None else [self.mask[rows], added.mask]
        columns = max(map(width, masks)) if takes_rows(self.cache) else self.mask.shape[1]
        regroup(self.cache, rows, columns, added and added.cache)
        self.mask = torch.cat([F.pad(mask, (columns - mask.shape[1], 0)) for mask in masks])
        for name in ("sample", "tokens", "length", "logprob", "ended"):
            parts = [getattr(self, name)[rows], *([] if added is None else [getattr(added, name)])]
            setattr(self, name, torch.cat(parts))


def width(mask: Tensor) -> int:
    """Columns of a mask (rows, columns) from the first that any row uses."""
    return int(mask.shape[1] - mask.any(0).int().argmax())


@dataclass
class Pool:
    """Prompts to sample from, (prompts, tokens) padded on the left, and how; `streams` (prompts, samples)."""

    model: Any
    ids: Tensor
    streams: Tensor
    config: GenerationConfig
    process: Callable[..., Tensor]
    kwargs: dict[str, Any]

    def __post_init__(self) -> None:
        self.cache_name = "cache_params" if "cache_params" in self.kwargs else "past_key_values"
        if self.kwargs.get(self.cache_name) is None:
            raise ModelError(
                f"{type(self.model).__name__} has no cache of transformers' own kind: it can be judged with, but not "
                "sampled from; use another model to sample"
            )
        self.empty: Cache = self.kwargs.pop(self.cache_name)
        mask = self.kwargs.pop("attention_mask")  # None where no prompt is padded
        self.mask: Tensor = torch.ones_like(self.ids) if mask is None else mask
        self.with_positions = self.kwargs.pop("position_ids", None) is not None
        self.ends = torch.tensor(self.config.eos_token_id or [], device=self.ids.device)

    def start(self, prompts: slice) -> Running:
        """Computes the prompts, once for all of their samples, and draws the first token of each."""
        columns, num_samples = width(self.mask[prompts]), self.streams.shape[1]
        ids, mask, cache = self.ids[prompts, -columns:], self.mask[prompts, -columns:], fresh(self.empty)
        outputs = self.model._prefill(ids, self.config, self._inputs(mask, cache, ids.shape[1]))
        rows = torch.arange(len(ids), device=ids.device).repeat_interleave(num_samples)
        regroup(cache, rows, columns)
        sample = prompts.start * num_samples + torch.arange(len(rows), device=ids.device)
        running = Running(
            cache,
            mask[rows],
            sample,
            tokens=ids.new_empty(len(rows), self.config.max_new_tokens + 1),
            length=torch.zeros_like(sample),
            logprob=torch.zeros_like(sample, dtype=torch.float64),
            ended=torch.zeros_like(sample, dtype=torch.bool),
        )
        self._draw(running, outputs.logits[rows, -1])
        return running

    def advance(self, running: Running) -> None:
        """Draws one more token in every row that has not ended."""
        running.mask = torch.cat([running.mask, (~running.ended).long()[:, None]], 1)
        inputs = self.model.prepare_inputs_for_generation(
            running.last(), next_sequence_length=1, **self._inputs(running.mask, running.cache, 1)
        )
        self._draw(running, self.model(**inputs, return_dict=True).logits[:, -1])

    def _inputs(self, mask: Tensor, cache: Cache, tokens: int) -> dict[str, Any]:
        """What the model is called with beside the ids of `tokens` new columns; positions count what the mask shows."""
        inputs: dict[str, Any] = {self.cache_name: cache, "attention_mask": mask}
        if self.with_positions:
            inputs["position_ids"] = positions(mask)[:, -tokens:]
        return self.kwargs | inputs

    def _draw(self, running: Running, logits: Tensor) -> None:
        """From the logits (rows, V) behind the last token of each row."""
        logits, uniform = logits.float(), None
        if self.config.do_sample:
            uniform = uniforms(self.streams.flatten()[running.sample], running.length)
        token, logprob = choose(logits, self.process(running.tokens, logits), uniform)
        running.record(token, logprob, self.ends)


def draw(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,  # noqa: ARG001 (they count columns; here every row has a count of its own)
    generation_config: GenerationConfig,
    streams: Tensor,
    places: int,
    **model_kwargs: Any,
) -> Iterator[Running]:
    """A decoding loop for `generate(custom_generate=...)`: `places` samples at a time, ended ones replaced by new ones.

    `input_ids` (prompts, tokens), padded on the left under an attention mask; `streams` (prompts, samples): the samples
    of one prompt share its prefill. Greedy when the configuration does not sample. Yields whenever rows are about to be
    taken out: those that are marked as `ended`, each of them once.
    """
    pool = Pool(model, input_ids, streams, generation_config, logits_processor, model_kwargs)
    num_prompts, num_samples = streams.shape
    begun = min(num_prompts, max(1, places // num_samples))
    running: Running | None = pool.start(slice(0, begun))
    while running is not None:
        while running.ended.sum() < ENDED_SHARE * len(running.ended):
            pool.advance(running)
        yield running
        rows = (~running.ended).nonzero()[:, 0]
        added, free = None, (places - len(rows)) // num_samples
        if len(rows) == 0 or takes_rows(running.cache):
            stop = min(num_prompts, begun + (free if len(rows) else max(1, free)))
            added = pool.start(slice(begun, stop)) if stop > begun else None
            begun = stop
        if len(rows):
            running.regroup(rows, added)
        else:
            running = added


def hidden_behind(model: Any, running: Running, rows: Sequence[int], continuations: Sequence[Sequence[int]]) -> Tensor:
    """Last hidden states (len(rows), width) of rows on a plain cache, each continued by ids of its own.

    The cache itself stays as it is. `continuations` of different lengths are padded on the left: behind a mask, padding
    between the cache and its continuation changes nothing.
    """
    device, longest = running.mask.device, max(map(len, continuations))
    ids = torch.tensor([[0] * (longest - len(c)) + list(c) for c in continuations], device=device)
    shown = torch.tensor([[0] * (longest - len(c)) + [1] * len(c) for c in continuations], device=device)
    index = torch.tensor(rows, device=device)
    mask = running.mask[index]
    columns = width(mask)
    mask = torch.cat([mask[:, -columns:], shown], 1)
    inputs: dict[str, Any] = {"past_key_values": subset(running.cache, index, columns), "attention_mask": mask}
    if "position_ids" in inspect.signature(model.base_model.forward).parameters:
        inputs["position_ids"] = positions(mask)[:, -longest:]
    return model.base_model(input_ids=ids, use_cache=True, **inputs).last_hidden_state[:, -1]


def positions(mask: Tensor) -> Tensor:
    """The position of every column among those that the mask shows: (rows, columns)."""
    return (mask.cumsum(-1) - 1).clamp(min=0)
