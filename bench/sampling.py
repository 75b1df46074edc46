"""Sampling: K responses to each prompt, from text to token ids, without filters at temperature 0.7.

Draws differ from way to way; the lengths must agree as far as chance allows. Tokens count up to the end token.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig

from bench import models, operations
from bench.engines import open_vllm, require_vllm
from bench.machine import LIMIT_WAY
from bench.models import END_ID, SHAPES, TEMPERATURE
from bench.operations import Lengths
from bench.ways import Place, Run, Turn, Unavailable, Way, clock, to_close
from selfjudge.backends import BACKENDS, BackendOptions, SampleRequest, open_backend
from selfjudge.backends import Sampling as Draw
from selfjudge.records import Message

PAGE = 256  # tokens of a page of continuous batching's cache
ONE_BY_ONE = "generate, one by one"
BATCHED = "generate, one batch"
CONTINUOUS = "generate_batch (continuous batching)"
VLLM = "vLLM"
OURS = "selfjudge, hf"
OURS_VLLM = "selfjudge, vllm"


@dataclass(frozen=True)
class Sampling:
    """Sizes; `alone` is how many sequences the one-by-one way draws, whose rate does not depend on it."""

    shape: str
    prompts: int
    prompt_tokens: int
    new_tokens: int
    num_responses: int = 4
    alone: int = 2

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its response."""
        return self.prompt_tokens + self.new_tokens


def prompts(work: Sampling, turn: int) -> list[str]:
    """Random text, new in every turn; a prompt has between half of `prompt_tokens` and all of them."""
    lengths, numbers, size = random.Random(0), random.Random(turn), SHAPES[work.shape].vocab_size
    return [
        models.words(lengths.randint(work.prompt_tokens // 2, work.prompt_tokens), numbers, size)
        for _ in range(work.prompts)
    ]


def turn_of(work: Sampling, seconds: float, asked: Sequence[str], lengths: Sequence[int]) -> Turn:
    """A turn with the operations that its tokens need; `lengths` has `num_responses` entries a prompt.

    A few sequences alone are too few to compare their mean length.
    """
    own = [tuple(lengths[i : i + work.num_responses]) for i in range(0, len(lengths), work.num_responses)]
    trees = [Lengths(len(text.split()), part) for text, part in zip(asked, own, strict=False)]
    flops = operations.forward(SHAPES[work.shape], trees, head_positions=sum(lengths))
    compared = tuple(lengths) if len(lengths) == work.prompts * work.num_responses else ()
    return Turn(seconds, sum(lengths), lengths=compared, flops=flops)


def generation_config(work: Sampling, num_return_sequences: int) -> GenerationConfig:
    """Pure sampling: temperature, no filter."""
    return GenerationConfig(
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
        top_p=1.0,
        max_new_tokens=work.new_tokens,
        num_return_sequences=num_return_sequences,
        eos_token_id=END_ID,
        pad_token_id=models.SPECIAL.index(models.PAD),
    )


def length_of(ids: Sequence[int]) -> int:
    """Tokens up to and with the end token."""
    return ids.index(END_ID) + 1 if END_ID in ids else len(ids)


def one_by_one(place: Place, work: Sampling) -> Run:
    """A call of `generate` for every response."""

    def draw(model: Any, tokenizer: Any, asked: Sequence[str]) -> list[int]:
        wanted = [text for text in asked for _ in range(work.num_responses)][: work.alone]
        return [length for text in wanted for length in generated(model, tokenizer, [text], work, 1)]

    return _with_transformers(place, work, draw)


def batched(place: Place, work: Sampling) -> Run:
    """One call of `generate` for all responses to all prompts, padded on the left."""

    def draw(model: Any, tokenizer: Any, asked: Sequence[str]) -> list[int]:
        return generated(model, tokenizer, asked, work, work.num_responses)

    return _with_transformers(place, work, draw)


def generated(model: Any, tokenizer: Any, asked: Sequence[str], work: Sampling, count: int) -> list[int]:
    """Lengths of what one call of `generate` draws."""
    inputs = tokenizer(list(asked), return_tensors="pt", padding=True, padding_side="left").to(model.device)
    output: Tensor = model.generate(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        generation_config=generation_config(work, count),
    )
    return [length_of(ids) for ids in output[:, inputs.input_ids.shape[1] :].tolist()]


def continuous(place: Place, work: Sampling) -> Run:
    """transformers' own continuous batching on a paged cache that holds all sequences."""
    settings = None
    if place.device == "cpu":  # it would size its cache by the memory of a GPU
        pages = work.prompts * work.num_responses * -(-work.longest // PAGE)
        settings = ContinuousBatchingConfig(
            page_size=PAGE, num_blocks=pages, max_batch_tokens=2048, use_cuda_graph=False, use_async_batching=False
        )

    def draw(model: Any, tokenizer: Any, asked: Sequence[str]) -> list[int]:
        ids = [tokenizer.encode(text) for text in asked]
        config = generation_config(work, work.num_responses)
        found = model.generate_batch(
            ids,
            generation_config=config,
            continuous_batching_config=settings,
            persistent_manager=place.device != "cpu",  # CUDA graphs are captured in the first round alone
            warmup=place.device != "cpu",
        )
        if len(found) < len(ids) * work.num_responses:  # it logs errors and returns what it has
            raise RuntimeError(f"generate_batch gave {len(found)} of {len(ids) * work.num_responses} responses")
        return [length_of(output.generated_tokens) for output in found.values()]

    return _with_transformers(place, work, draw)


def _with_transformers(place: Place, work: Sampling, draw: Callable[[Any, Any, Sequence[str]], list[int]]) -> Run:
    model, tokenizer = models.load(place)

    @torch.no_grad()
    def run(turn: int) -> Turn:
        torch.manual_seed(turn)
        asked = prompts(work, turn)
        seconds, lengths = clock(place, lambda: draw(model, tokenizer, asked))
        return turn_of(work, seconds, asked, lengths)

    return run


def vllm_alone(place: Place, work: Sampling) -> Run:
    """`LLM.generate` with n responses a prompt, the seeds and the log-probabilities that `selfjudge` asks for, too."""
    engine = open_vllm(place, models.CONTEXT)
    from vllm import SamplingParams

    tokenizer = models.AutoTokenizer.from_pretrained(place.folder)
    shared = {"n": work.num_responses, "temperature": TEMPERATURE, "max_tokens": work.new_tokens, "logprobs": 0}

    def draw(asked: Sequence[str]) -> list[int]:
        ids = [{"prompt_token_ids": tokenizer.encode(text)} for text in asked]
        parameters = [SamplingParams(seed=number, stop_token_ids=[END_ID], **shared) for number in range(len(ids))]
        found = engine.generate(ids, parameters, use_tqdm=False)
        return [length_of(list(output.token_ids)) for request in found for output in request.outputs]

    def run(turn: int) -> Turn:
        asked = prompts(work, turn)
        seconds, lengths = clock(place, lambda: draw(asked))
        return turn_of(work, seconds, asked, lengths)

    return run


def ours(place: Place, work: Sampling) -> Run:
    """The hf backend as the sample step uses it."""
    return _backend("hf", place, work)


def ours_vllm(place: Place, work: Sampling) -> Run:
    """The vllm backend as the sample step uses it."""
    require_vllm()
    if "vllm" not in BACKENDS:
        raise Unavailable("this version of selfjudge has no vllm backend")
    return _backend("vllm", place, work)


def _backend(name: str, place: Place, work: Sampling) -> Run:
    options = BackendOptions(place.device, place.dtype, threads=place.threads)
    backend = to_close.enter_context(open_backend(name, place.folder, options))

    def draw(requests: Sequence[SampleRequest], turn: int) -> list[int]:
        settings = Draw(work.num_responses, TEMPERATURE, max_new_tokens=work.new_tokens, seed=turn)
        results = {result.key: result for batch in backend.generate(requests, settings) for result in batch}
        return [len(response.token_ids or ()) for request in requests for response in results[request.key].responses]

    def run(turn: int) -> Turn:
        asked = prompts(work, turn)
        requests = [SampleRequest(str(number), (Message("user", text),)) for number, text in enumerate(asked)]
        seconds, lengths = clock(place, lambda: draw(requests, turn))
        return turn_of(work, seconds, asked, lengths)

    return run


WAYS: dict[str, Way] = {
    ONE_BY_ONE: one_by_one,
    BATCHED: batched,
    CONTINUOUS: continuous,
    VLLM: vllm_alone,
    OURS: ours,
    OURS_VLLM: ours_vllm,
    **LIMIT_WAY,
}
