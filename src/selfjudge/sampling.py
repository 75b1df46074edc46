"""Drawing tokens: uniforms that depend on nothing but seed, prompt, sample and step, and the draw from them.

    model.generate(ids, attention_mask=mask, generation_config=config, custom_generate=draw, streams=streams)

A sample is the same in any batch, in any order and after any restart, up to the rounding of the model's own logits: a
uniform that falls within that rounding (about 1e-6) of the border between two tokens can still fall on either side.
"""

# pyright: reportPrivateUsage=false
# (the hooks of a decoding loop, `_prefill` and `_update_model_kwargs_for_generation`, have no public names)

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

BLOCK = 256  # vocabulary entries of one block of the two-level cumulative sum


class Drawn(NamedTuple):
    """`tokens` (samples, steps), what comes after a sample's end being undefined; `logprobs` of the same shape.

    `logprobs` are those of the model itself in nats, at temperature 1 and before any filter.
    """

    tokens: Tensor
    logprobs: Tensor


def uniforms(streams: Tensor, step: int) -> Tensor:
    """The uniform in [0, 1) of each stream at a step: (samples,) int64 -> (samples,) float64.

    SplitMix64 (Steele, Lea, Flood 2014) as a counter-based generator: the state is stream + step * odd constant.
    """
    state = streams + _signed(0x9E3779B97F4A7C15 * (step + 1))
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


def draw(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    streams: Tensor,
    **model_kwargs: Any,
) -> Drawn:
    """A decoding loop for `generate(custom_generate=...)`: prompts once, then all their samples together.

    `input_ids` (prompts, tokens), padded on the left under an attention mask; `streams` (prompts, samples): the samples
    of one prompt share its prefill. Greedy when the configuration does not sample.
    """
    num_samples = streams.shape[1]
    outputs = model._prefill(input_ids, generation_config, model_kwargs)
    logits = outputs.logits[:, -1].float().repeat_interleave(num_samples, 0)
    model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs)
    model_kwargs["past_key_values"].batch_repeat_interleave(num_samples)
    for name in ("attention_mask", "position_ids"):
        if model_kwargs.get(name) is not None:
            model_kwargs[name] = model_kwargs[name].repeat_interleave(num_samples, 0)
    ids, flat = input_ids.repeat_interleave(num_samples, 0), streams.flatten()
    logprobs: list[Tensor] = []
    done = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    while True:
        token, logprob = _choose(logits, logits_processor(ids, logits.clone()), flat, generation_config, len(logprobs))
        logprobs.append(logprob)
        ids = torch.cat([ids, token[:, None]], -1)
        done |= stopping_criteria(ids, None)  # pyright: ignore[reportArgumentType]
        if done.all():
            break
        inputs = model.prepare_inputs_for_generation(ids, next_sequence_length=1, **model_kwargs)
        outputs = model(**inputs, return_dict=True)
        model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs)
        logits = outputs.logits[:, -1].float()
    return Drawn(ids[:, input_ids.shape[1] :], torch.stack(logprobs, -1))


def _choose(
    logits: Tensor, filtered: Tensor, streams: Tensor, config: GenerationConfig, step: int
) -> tuple[Tensor, Tensor]:
    """(B, V) logits before and after temperature and filters -> (B,) tokens and their plain log-probabilities."""
    token = inverse_cdf(filtered, uniforms(streams, step)) if config.do_sample else filtered.argmax(-1)
    return token, logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(-1)
