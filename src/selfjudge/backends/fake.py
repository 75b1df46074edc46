"""A backend without a model, for tests: log-probabilities and responses that are functions of the request's text."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import islice

from selfjudge.backends import (
    BackendOptions,
    LabelRequest,
    LabelResult,
    Messages,
    SampleRequest,
    SampleResult,
    Sampling,
)
from selfjudge.records import Message, Response


class FakeBackend:
    """See `selfjudge.backends.Backend`. Every fourth response or so repeats another one of its prompt."""

    def __init__(self, model: str, options: BackendOptions) -> None:
        self.name = model
        self.options = options

    def close(self) -> None:
        """Holds nothing."""

    def label_logprobs(self, requests: Sequence[LabelRequest]) -> list[LabelResult]:
        """Probabilities of the labels from a hash of the shown text."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: LabelRequest) -> LabelResult:
        shown = "".join(message.content for message in request.quoted.messages)
        weights = [1 + _number(shown, index, 1000) for index in range(len(request.labels))]
        total = sum(weights) * 1.25  # a fifth of the mass lies on other tokens
        return LabelResult(tuple(math.log(weight / total) for weight in weights), sum(weights) / total, False)

    def generate(
        self, requests: Iterable[SampleRequest], sampling: Sampling, done: Container[str] = ()
    ) -> Iterator[list[SampleResult]]:
        """Batches of up to 8 prompts; token ids are the bytes of the text and an end token 0."""
        remaining = iter(requests)
        while batch := list(islice(remaining, 8)):
            if not all(request.key in done for request in batch):
                yield [self._sample(request, sampling) for request in batch]

    def _sample(self, request: SampleRequest, sampling: Sampling) -> SampleResult:
        prompt = "".join(message.content for message in request.messages)
        streams = [sampling.stream(request.key, k) for k in range(sampling.num_responses)]
        responses = tuple(_judgement(prompt) if request.quoted else self._respond(stream) for stream in streams)
        answers = tuple(self._follow(request, response.text) for response in responses) if request.follow_up else ()
        return SampleResult(request.key, tuple(prompt.encode()), responses, answers)

    def _follow(self, request: SampleRequest, response: str) -> LabelResult:
        """As the same question gets it from `label_logprobs` when it is put as the next turn."""
        assert request.follow_up is not None
        turns = (*request.messages, Message("assistant", response), Message("user", request.follow_up.question))

        def render(_: str) -> Messages:
            return turns

        return self._answer(LabelRequest(request.key, render, response, request.follow_up.labels))

    def _respond(self, stream: int) -> Response:
        text = f"answer {stream % 7}"
        return Response(text, (*text.encode(), 0), -1.0 - stream % 97 / 10, finished=stream % 11 > 0)


def _judgement(prompt: str) -> Response:
    """What a judge of either kind may write: a grade and a verdict, now and then neither."""
    grade, verdict = 1 + _number(prompt, 0, 5), ("A", "B", "Tie")[_number(prompt, 1, 3)]
    text = f"Score: {grade}\nVerdict: {verdict}" if _number(prompt, 2, 10) else "Nothing to say."
    return Response(text, (*text.encode(), 0), -1.0)


def _number(text: str, index: int, below: int) -> int:
    digest = hashlib.blake2b(f"{index}\x1f{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % below
