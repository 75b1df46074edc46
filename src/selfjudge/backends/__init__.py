"""Where log-probabilities and samples come from: one protocol, one file per backend.

    with open_backend("hf", "path/to/model", device="auto", dtype="auto") as backend:
        results = backend.label_logprobs([LabelRequest(group="1", render=..., text="4", labels=(("Yes",), ("No",)))])

A backend does three things (`label_logprobs`, `generate`, `close`); what the figures mean is the judge's business.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from selfjudge.records import Message, Response

Messages = tuple[Message, ...]
NOT_A_NUMBER = "the model's logits are not numbers; try --dtype float32 or bfloat16"


@dataclass(frozen=True)
class LabelRequest:
    """Ask which label comes next.

    `group` names the example: neighbours of one group share their beginning. `render(text, *more)` gives the messages
    to show; `text` (the response) and `more` (further responses) are the parts whose middle may be cut when the whole
    is longer than the context. `labels` holds the spellings of each label. Without `with_mass` the total probability of
    the labels is not computed, and only differences of the log-probabilities mean anything.

    `layout` reference is for comparison with the reference implementation: the content of the one message is read raw,
    without a chat template, cut at the right after 1,024 tokens, and a label is all pieces of its words added up.
    """

    group: str
    render: Callable[..., Messages]
    text: str
    labels: tuple[tuple[str, ...], ...]
    with_mass: bool = True
    layout: Literal["chat", "reference"] = "chat"
    more: tuple[str, ...] = ()

    @property
    def quoted(self) -> Quoted:
        """What is shown."""
        return Quoted(self.render, (self.text, *self.more))


@dataclass(frozen=True)
class Quoted:
    """A judge's question around texts whose middles may be cut, each to the same length, to fit the context."""

    render: Callable[..., Messages]
    """Takes the texts, whole or cut."""
    texts: tuple[str, ...]

    @property
    def messages(self) -> Messages:
        """With whole texts."""
        return self.render(*self.texts)


class LabelResult(NamedTuple):
    """`logprobs`: one per label, natural log; `mass`: their total probability, NaN where it was not computed.

    An API lists the most probable tokens only. `bounded`: a label is not among them, and its log-probability here is
    the highest that it can have. The mass is then of what is listed, a lower bound. Where nothing can be read all
    log-probabilities are NaN and `reason` says why.
    """

    logprobs: tuple[float, ...]
    mass: float
    truncated: bool
    bounded: bool = False
    reason: str | None = None

    @classmethod
    def of(cls, logprobs: tuple[float, ...], mass: float, truncated: bool) -> LabelResult:
        """What a model gave, with the reason where that is not a number."""
        return cls(logprobs, mass, truncated, reason=NOT_A_NUMBER if any(map(math.isnan, logprobs)) else None)

    @classmethod
    def unread(cls, request: LabelRequest, reason: str) -> LabelResult:
        """A question that could not be put to the model."""
        return cls((math.nan,) * len(request.labels), math.nan, False, reason=reason)


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn. `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 switch a filter off."""

    num_responses: int = 4
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_new_tokens: int = 256
    seed: int = 0

    def stream(self, prompt_key: str, sample: int) -> int:
        """The 63-bit key of one sample's random numbers: a function of seed, prompt and sample index alone."""
        text = f"{self.seed}\x1f{prompt_key}\x1f{sample}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class FollowUp:
    """A question put to the model as the user's next turn, behind each response that it has just sampled.

    The answer's labels are read from the key-value cache that sampling built: only the question is computed.
    """

    question: str
    labels: tuple[tuple[str, ...], ...]


class SampleRequest(NamedTuple):
    """`key` names the prompt; with the seed it fixes the random numbers of its samples.

    A prompt that is too long is an error, unless it is `quoted`: the same messages as a judge's question that may quote
    less. Such a question never opens a thinking part.
    """

    key: str
    messages: Messages
    follow_up: FollowUp | None = None
    quoted: Quoted | None = None


class SampleResult(NamedTuple):
    """`prompt_ids` is the rendered prompt that the responses continue; `answers` to the follow-up, one per response.

    `from_cache` is False where the model's cache could not be continued and the answers were computed from the start;
    `truncated` is True where a quoted text was cut to fit the context. Where even that is not enough there are no
    responses and `reason` says why.
    """

    key: str
    prompt_ids: tuple[int, ...]
    responses: tuple[Response, ...]
    answers: tuple[LabelResult, ...] = ()
    from_cache: bool = True
    truncated: bool = False
    reason: str | None = None


class Backend(Protocol):
    """What a judge and a sampler need."""

    def label_logprobs(self, requests: Sequence[LabelRequest]) -> list[LabelResult]:
        """Results in the order of the requests; requests that share a beginning and stand together share its cost."""
        ...

    def generate(
        self, requests: Iterable[SampleRequest], sampling: Sampling, done: Container[str] = ()
    ) -> Iterator[list[SampleResult]]:
        """Yields results batch by batch, leaving out batches whose keys are all in `done`.

        `requests` is iterated twice and never held as a whole: first to find prompts that are too long for the model
        (DataError, before anything is sampled), then to sample. Batches depend on the requests alone, not on `done`.
        """
        ...

    def close(self) -> None:
        """Frees the model's memory."""
        ...


class Conversation(NamedTuple):
    """`key` names the example; `messages` are the turns up to the response."""

    key: str
    messages: Messages
    response: str


class Scorer(Protocol):
    """A model that gives a response a number, without a question."""

    def score(self, conversations: Sequence[Conversation]) -> list[tuple[float, bool]]:
        """For each, in their order: the raw logit, and whether the middle of the response was cut to fit."""
        ...

    def close(self) -> None:
        """Frees the model's memory."""
        ...


@dataclass(frozen=True)
class BackendOptions:
    """Everything about how a model is loaded and run that does not change what is computed, and its dtype."""

    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False
    threads: int = 0
    thinking: bool = False
    max_length: int = 0
    """Tokens of prompt and response together; 0: the model's own context."""
    token_budget: int = 0
    """Tokens of a packed row; 0: as many as fit the memory, at most 2,048 on a CPU and 16,384 on a GPU."""
    sample_batch: int = 0
    """Sequences sampled at a time; 0: as many as their KV cache fits 2 GiB (a GPU: a third of its memory)."""
    base_url: str | None = None
    """An API's address; this and what follows is for the openai backend alone."""
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = 8
    max_requests: int = 0
    input_price: float = 0.0
    output_price: float = 0.0
    api_cache: str | None = None
    say: Callable[[str], None] = field(default=lambda _: None, compare=False)
    """Gets remarks on how the work is done: a slower way and why, less at a time because memory ran out."""


def _hf(model: str, options: BackendOptions) -> Backend:
    from selfjudge.backends.hf import HFBackend

    return HFBackend(model, options)


def _fake(model: str, options: BackendOptions) -> Backend:
    from selfjudge.backends.fake import FakeBackend

    return FakeBackend(model, options)


def _vllm(model: str, options: BackendOptions) -> Backend:
    from selfjudge.backends.vllm import VLLMBackend

    return VLLMBackend(model, options)


def _openai(model: str, options: BackendOptions) -> Backend:
    from selfjudge.backends.openai import OpenAIBackend

    return OpenAIBackend(model, options)


BACKENDS: dict[str, Callable[[str, BackendOptions], Backend]] = {
    "hf": _hf,
    "vllm": _vllm,
    "openai": _openai,
    "fake": _fake,
}


def open_reward_model(model: str, options: BackendOptions) -> Scorer:
    """A reward model; it runs in transformers, whatever backend samples."""
    from selfjudge.backends.reward_model import RewardModel

    return RewardModel(model, options)


@contextmanager
def open_backend(name: str, model: str, options: BackendOptions) -> Generator[Backend]:
    """Opens the backend called `name` on a model (folder, hub name, `lab` or `lab-weak`) and closes it afterwards."""
    backend = BACKENDS[name](model, options)
    try:
        yield backend
    finally:
        backend.close()
