"""Scoring: log-odds of Yes against No for several responses to each prompt, from text to figures.

Every way gets the same rendered text and must give the same log-odds.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench import models, operations
from bench.engines import open_vllm, require_vllm
from bench.machine import LIMIT_WAY
from bench.models import SHAPES
from bench.operations import Lengths
from bench.ways import Place, Run, Turn, Unavailable, Way, clock, to_close
from selfjudge.backends import BACKENDS, BackendOptions, LabelRequest, open_backend
from selfjudge.records import Message

PADDED_TOKENS = 4096
QUESTION_TOKENS = 24
LABELS = ((models.YES,), (models.NO,))
REFERENCE = "reference: one by one, all logits"
ONE_BY_ONE = "one by one, logits of the last position"
PADDED = "padded batches of 4,096 tokens"
VLLM = "vLLM"
OURS = "selfjudge, hf"
OURS_VLLM = "selfjudge, vllm"


@dataclass(frozen=True)
class Scoring:
    """Sizes; a response has between half of `response_tokens` and all of them."""

    shape: str
    prompts: int
    prompt_tokens: int
    response_tokens: int
    num_responses: int = 4


@dataclass(frozen=True)
class Item:
    """A prompt and its responses, as text of one token per word."""

    prompt: str
    responses: tuple[str, ...]


def trees(work: Scoring) -> list[Lengths]:
    """Tokens of each prompt and of what stands behind it, question included; the same in every turn."""
    numbers = random.Random(0)
    low, high = work.response_tokens // 2 + QUESTION_TOKENS, work.response_tokens + QUESTION_TOKENS
    return [
        Lengths(work.prompt_tokens, tuple(numbers.randint(low, high) for _ in range(work.num_responses)))
        for _ in range(work.prompts)
    ]


def items(work: Scoring, turn: int) -> list[Item]:
    """Random text, the same for every way and new in every turn: no way can keep anything from the turn before."""
    numbers, size = random.Random(turn), SHAPES[work.shape].vocab_size
    return [
        Item(
            models.words(tree.prompt, numbers, size),
            tuple(models.words(length - QUESTION_TOKENS, numbers, size) for length in tree.responses),
        )
        for tree in trees(work)
    ]


def question(work: Scoring) -> str:
    """What stands behind every response."""
    return models.words(QUESTION_TOKENS, random.Random(1), SHAPES[work.shape].vocab_size)


def texts(work: Scoring, turn: int) -> list[str]:
    """The rendered prompts that end where Yes or No is read."""
    return [f"{item.prompt} {response} {question(work)}" for item in items(work, turn) for response in item.responses]


def turn_of(work: Scoring, seconds: float, log_odds: Sequence[float]) -> Turn:
    """A turn with its results and the operations that the work needs."""
    flops = operations.forward(SHAPES[work.shape], trees(work), head_positions=len(log_odds))
    return Turn(seconds, len(log_odds), tuple(log_odds), flops=flops)


def label_ids(tokenizer: Any) -> tuple[int, int]:
    """The one id of Yes and the one of No."""
    return tokenizer.convert_tokens_to_ids(models.YES), tokenizer.convert_tokens_to_ids(models.NO)


def reference_log_odds(model: Any, tokenizer: Any, text: str) -> float:
    """As the reference code does: one sequence, logits of every position, softmax, two probabilities."""
    encoded = tokenizer(text, return_tensors="pt", truncation=True).to(model.device)
    probabilities = torch.softmax(model(**encoded).logits[0, -1].float(), -1)
    yes, no = label_ids(tokenizer)
    return float(torch.log(probabilities[yes] / probabilities[no]))


def reference(place: Place, work: Scoring) -> Run:
    """One by one with all logits."""
    model, tokenizer = models.load(place)

    @torch.no_grad()
    def run(turn: int) -> Turn:
        asked = texts(work, turn)
        return turn_of(work, *clock(place, lambda: [reference_log_odds(model, tokenizer, text) for text in asked]))

    return run


def one_by_one(place: Place, work: Scoring) -> Run:
    """One by one, asking `forward` for the logits of the last position only."""
    model, tokenizer = models.load(place)
    yes, no = label_ids(tokenizer)

    def score(text: str) -> float:
        ids = torch.tensor([tokenizer.encode(text)], device=place.device)
        logits = model(ids, logits_to_keep=1, use_cache=False).logits[0, -1].float()
        return float(logits[yes] - logits[no])

    @torch.no_grad()
    def run(turn: int) -> Turn:
        asked = texts(work, turn)
        return turn_of(work, *clock(place, lambda: [score(text) for text in asked]))

    return run


def padded(place: Place, work: Scoring) -> Run:
    """Sorted by length, padded on the right (which needs no mask under causal attention), labels' rows of the head."""
    model, tokenizer = models.load(place)
    rows = model.get_output_embeddings().weight[list(label_ids(tokenizer))]

    def score_all(asked: list[str]) -> list[float]:
        encoded = [tokenizer.encode(text) for text in asked]
        found: dict[int, float] = {}
        for batch in padded_batches([len(ids) for ids in encoded]):
            found.update(zip(batch, _padded_log_odds(model, rows, [encoded[i] for i in batch]), strict=True))
        return [found[index] for index in range(len(encoded))]

    @torch.no_grad()
    def run(turn: int) -> Turn:
        asked = texts(work, turn)
        return turn_of(work, *clock(place, lambda: score_all(asked)))

    return run


def padded_batches(lengths: Sequence[int]) -> list[list[int]]:
    """Indices by falling length, each batch up to PADDED_TOKENS with its padding."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > PADDED_TOKENS:
            batches.append([])
        batches[-1].append(index)
    return batches


def _padded_log_odds(model: Any, rows: Tensor, batch: Sequence[list[int]]) -> list[float]:
    longest = max(len(ids) for ids in batch)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids in batch], device=model.device)
    hidden = model.base_model(ids, use_cache=False).last_hidden_state  # (batch, longest, width)
    last = hidden[torch.arange(len(batch)), [len(ids) - 1 for ids in batch]].float()
    logits = last @ rows.float().T  # (batch, 2)
    return (logits[:, 0] - logits[:, 1]).tolist()


def vllm_alone(place: Place, work: Scoring) -> Run:
    """One new token that can only be Yes or No, its log-probabilities after that restriction, prefix caching."""
    engine = open_vllm(place, models.CONTEXT, logprobs_mode="processed_logprobs")
    from vllm import SamplingParams

    tokenizer = models.AutoTokenizer.from_pretrained(place.folder)
    yes, no = label_ids(tokenizer)
    parameters = SamplingParams(max_tokens=1, logprobs=2, allowed_token_ids=[yes, no], temperature=1.0)

    def score_all(asked: list[str]) -> list[float]:
        prompts = [{"prompt_token_ids": tokenizer.encode(text)} for text in asked]
        found = [output.outputs[0].logprobs[0] for output in engine.generate(prompts, parameters, use_tqdm=False)]
        return [logprobs[yes].logprob - logprobs[no].logprob for logprobs in found]

    def run(turn: int) -> Turn:
        asked = texts(work, turn)
        return turn_of(work, *clock(place, lambda: score_all(asked)))

    return run


def ours(place: Place, work: Scoring) -> Run:
    """The hf backend as the judge uses it."""
    return _backend("hf", place, work)


def ours_vllm(place: Place, work: Scoring) -> Run:
    """The vllm backend as the judge uses it."""
    require_vllm()
    if "vllm" not in BACKENDS:
        raise Unavailable("this version of selfjudge has no vllm backend")
    return _backend("vllm", place, work)


def _backend(name: str, place: Place, work: Scoring) -> Run:
    options = BackendOptions(place.device, place.dtype, threads=place.threads)
    backend = to_close.enter_context(open_backend(name, place.folder, options))

    def run(turn: int) -> Turn:
        asked = requests(work, turn)
        seconds, found = clock(place, lambda: backend.label_logprobs(asked))
        return turn_of(work, seconds, [result.logprobs[0] - result.logprobs[1] for result in found])

    return run


def requests(work: Scoring, turn: int) -> list[LabelRequest]:
    """The same text as the other ways have, as the judge asks for it: neighbours share their prompt."""
    return [
        LabelRequest(str(number), partial(_messages, item.prompt, question(work)), response, LABELS)
        for number, item in enumerate(items(work, turn))
        for response in item.responses
    ]


def _messages(prompt: str, asked: str, response: str) -> tuple[Message, ...]:
    return (Message("user", f"{prompt} {response} {asked}"),)


WAYS: dict[str, Way] = {
    REFERENCE: reference,
    ONE_BY_ONE: one_by_one,
    PADDED: padded,
    VLLM: vllm_alone,
    OURS: ours,
    OURS_VLLM: ours_vllm,
    **LIMIT_WAY,
}
