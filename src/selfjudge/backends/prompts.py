"""From requests to token ids, the same for every backend that holds a model's tokenizer.

    prompts = Prompts(renderer, name="my-model", num_embeddings=32000, max_length=4096)
    prompts.ask(label_request).ids          # ends where the label stands
    prompts.check(sample_requests, sampling)
    prompts.of(sample_request, sampling).ids    # ends where the answer starts

Cutting, label ids in context and all refusals are here, so that backends differ in speed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from selfjudge import labels
from selfjudge.backends import FollowUp, LabelRequest, Quoted, SampleRequest, SampleResult, Sampling
from selfjudge.errors import ConfigError, DataError, ModelError
from selfjudge.records import Response
from selfjudge.rendering import CUT, Renderer

REFERENCE_LENGTH = 1024  # tokens at which the reference implementation cuts
LABEL_TAIL = 64  # characters at a prompt's end that decide which ids continue it as a label

LabelIds = tuple[tuple[int, ...], ...]


class Asked(NamedTuple):
    """A label request, ready to run: `label_ids` has one tuple of ids per label."""

    ids: list[int]
    label_ids: LabelIds
    truncated: bool
    with_mass: bool
    reason: str | None = None
    """Why it cannot be run: it does not fit the context."""


class Prompt(NamedTuple):
    """A prompt to sample from, ready to run."""

    request: SampleRequest
    ids: list[int]
    truncated: bool = False
    reason: str | None = None
    """Why it cannot be run: it does not fit the context."""

    @property
    def refusal(self) -> SampleResult:
        """The result of one that cannot be run."""
        return SampleResult(self.request.key, (), (), reason=self.reason)


class Question(NamedTuple):
    """What stands between the last word of a response and the answer to a follow-up question."""

    ids: list[int]
    label_ids: LabelIds


class Prompts:
    """Prepares requests for the model called `name`, whose context is `max_length` tokens."""

    def __init__(self, renderer: Renderer, name: str, num_embeddings: int, max_length: int) -> None:
        self.renderer = renderer
        self.name = name
        self.num_embeddings = num_embeddings
        self.max_length = max_length
        self._label_ids: dict[tuple[str, tuple[tuple[str, ...], ...]], LabelIds] = {}
        self._questions: dict[FollowUp, Question] = {}

    def ask(self, request: LabelRequest) -> Asked:
        """The prompt that the label follows; the middle of the response is cut where the whole is too long."""
        if request.layout == "reference":
            return self._ask_as_reference(request)
        fitting = self._fitting(request.quoted, self.max_length)
        if fitting is None:
            return Asked([], (), False, request.with_mass, self._too_long(self.max_length))
        text, ids, truncated = fitting
        return Asked(self._known(ids), self._resolve(text, request.labels), truncated, request.with_mass)

    def _ask_as_reference(self, request: LabelRequest) -> Asked:
        """Raw text with the tokenizer's own special tokens, cut at the right; a label is the sum over its pieces.

        Pieces may be shared by both labels (Llama-2's bare blank); the label mass then counts them twice.
        """
        encode = self.renderer.tokenizer.encode
        (message,) = request.render(request.text)
        ids = encode(message.content)
        truncated = len(ids) > REFERENCE_LENGTH
        if truncated:
            ids = encode(message.content, max_length=REFERENCE_LENGTH, truncation=True)
        if len(ids) > self.max_length:
            reason = f"the reference's layout cuts at {REFERENCE_LENGTH} tokens, the model reads {self.max_length}"
            return Asked([], (), False, request.with_mass, reason)
        pieces = (
            tuple(i for word in words for i in encode(word, add_special_tokens=False)) for words in request.labels
        )
        return Asked(self._known(ids), tuple(pieces), truncated, request.with_mass)

    def of(self, request: SampleRequest, sampling: Sampling) -> Prompt:
        """The prompt that a response continues; what it quotes is cut so that the new tokens fit, too."""
        if request.quoted is None:
            return Prompt(request, self._known(self.renderer.ids(request.messages)))
        room = self._room(request, sampling)
        fitting = self._fitting(request.quoted, room)
        if fitting is None:
            return Prompt(request, [], reason=f"{self._too_long(room)}; lower --judge-tokens")
        _, ids, truncated = fitting
        return Prompt(request, self._known(ids), truncated)

    def question(self, follow_up: FollowUp) -> Question:
        """A follow-up question, from the end of the response on (the token that ends it included) to its answer."""
        if follow_up not in self._questions:
            text = self.renderer.follow_up(follow_up.question)
            ids = self._known(self.renderer.tokenizer.encode(text, add_special_tokens=False))
            self._questions[follow_up] = Question(ids, self._resolve(text, follow_up.labels))
        return self._questions[follow_up]

    def response(self, ids: Sequence[int], logprob: float, finished: bool) -> Response:
        """Sampled ids, the last of which is the end token where it is `finished`; `logprob` is the sum over all."""
        text = self.renderer.decode(ids[:-1] if finished else ids)
        return Response(text, tuple(ids), logprob, finished)

    def check(self, requests: Iterable[SampleRequest], sampling: Sampling) -> None:
        """Raises DataError with the number of prompts that are too long, ConfigError where none could fit."""
        count = too_long = 0
        first = ""
        for request in requests:
            count += 1
            if request.quoted is not None:
                continue  # is made to fit
            length, room = len(self.of(request, sampling).ids), self._room(request, sampling)
            if length > room:
                too_long += 1
                first = first or (
                    f"{request.key} with {length} tokens: at most {room} fit beside {sampling.max_new_tokens} new ones"
                )
        if too_long:
            raise DataError(
                f"{too_long} of {count} prompts are too long, the first is {first} in the {self.max_length} of "
                f"{self.name}; remove them or lower --max-new-tokens"
            )

    def _room(self, request: SampleRequest, sampling: Sampling) -> int:
        question = len(self.question(request.follow_up).ids) if request.follow_up else 0
        room = self.max_length - sampling.max_new_tokens - question
        if room < 1:
            option = "--max-new-tokens" if request.quoted is None else "--judge-tokens"
            raise ConfigError(
                f"{option} {sampling.max_new_tokens} leaves no room for a prompt in the {self.max_length} "
                f"tokens of {self.name}; use less"
            )
        return room

    def _known(self, ids: list[int]) -> list[int]:
        """The ids themselves; raises ModelError for one without an embedding: it would fail deep inside the model."""
        if max(ids) >= self.num_embeddings:
            raise ModelError(
                f"model {self.name}: its tokenizer gives the id {max(ids)}, but it has only {self.num_embeddings} "
                "embeddings; tokenizer and weights do not belong together"
            )
        return ids

    def _too_long(self, room: int) -> str:
        return f"request and question alone exceed the {room} tokens that the model takes"

    def _fitting(self, quoted: Quoted, room: int) -> tuple[str, list[int], bool] | None:
        """The question in at most `room` tokens, its ids, and whether a quoted text had to be cut for that.

        None where it does not fit even without what it quotes.
        """

        def render(*texts: str) -> str:
            return self.renderer.text(quoted.render(*texts), thinking=False)

        text = render(*quoted.texts)
        ids = self.renderer.encode(text)
        if len(ids) <= room:
            return text, ids, False
        cut = cut_to_fit(self.renderer, render, quoted.texts, room)
        return None if cut is None else (*cut, True)

    def _resolve(self, text: str, words: tuple[tuple[str, ...], ...]) -> LabelIds:
        key = (text[-LABEL_TAIL:], words)
        if key not in self._label_ids:
            self._label_ids[key] = labels.resolve_groups(self.renderer.encode, text, words, self.name)
        return self._label_ids[key]


def cut_to_fit(
    renderer: Renderer, render: Callable[..., str], texts: Sequence[str], room: int
) -> tuple[str, list[int]] | None:
    """Cuts the middles of the texts, each to the same length, until `render` of them fits; the rest stays whole.

    Returns text and ids of at most `room` tokens; None where it cannot fit even without the texts.
    """
    lengths = [len(renderer.encode(text)) for text in texts]
    beyond = len(renderer.encode(render(*texts))) - room
    keep = sum(lengths) - beyond - len(lengths) * len(renderer.encode(CUT))
    while keep > 0:
        text = render(*(renderer.cut_middle(text, fair_share(lengths, keep)) for text in texts))
        ids = renderer.encode(text)
        if len(ids) <= room:
            return text, ids
        keep -= len(ids) - room
    return None


def fair_share(lengths: Sequence[int], total: int) -> int:
    """The most that each may keep so that all together keep at most `total`: what a short one leaves, others get.

    >>> fair_share([10, 100, 100], 110)
    50
    """
    left = total
    for count, length in zip(range(len(lengths), 0, -1), sorted(lengths), strict=True):
        if length * count > left:
            return left // count
        left -= length
    return max(lengths)
