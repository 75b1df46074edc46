"""The openai backend: any server with an OpenAI-compatible chat API (vLLM, SGLang, llama.cpp, OpenRouter, ...).

    selfjudge judge --backend openai --base-url http://HOST:8000/v1 --model NAME --input rows.jsonl --out scored.jsonl

A server renders, cuts and tokenizes by itself; what is known here is text and the log-probabilities of the 20 most
probable tokens. Requests run side by side, results come in order. Every answer goes into a cache on disk as it
arrives, so that a run that was interrupted asks nothing twice.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from selfjudge.backends import (
    BackendOptions,
    LabelRequest,
    LabelResult,
    Messages,
    SampleRequest,
    SampleResult,
    Sampling,
)
from selfjudge.backends.openai_address import api_key, base_url
from selfjudge.backends.openai_answers import Answer, MissingLogprobs, label_result, response_of
from selfjudge.backends.openai_cache import Cache, cache_file, digest
from selfjudge.backends.openai_cost import CHARACTERS_PER_TOKEN, Plan, Prices, Spent
from selfjudge.backends.openai_transport import Refused, Transport
from selfjudge.errors import ConfigError, DataError, ModelError, SelfjudgeError, StepError
from selfjudge.records import Message, Response

TOP_LOGPROBS = 20
"""Most probable tokens to ask for: the most that the API allows."""
CUTS = 8
"""How often the response of a request that is too long is halved."""
CUT = " [...] "
AHEAD = 4
"""Samples under way or waiting, per request that runs at a time."""
SEED_BITS = 31  # some servers take no larger seed
TOO_LONG = "too_long"
TOO_LONG_STATUS = (400, 413, 422)
TOO_LONG_WORDS = re.compile(r"context|too long|too many tokens|(maximum|max) .*(length|tokens)", re.IGNORECASE)

Item = TypeVar("Item")
Result = TypeVar("Result")


class OpenAIBackend:
    """See `selfjudge.backends.Backend`. `model` is the server's name of it."""

    def __init__(self, model: str, options: BackendOptions, sleep: Callable[[float], object] | None = None) -> None:
        """`sleep` waits between attempts. Raises ConfigError without an address, or for a key that cannot be one."""
        self.name = model
        self.options = options
        self.url = base_url(options.base_url)
        self.prices = Prices(options.input_price, options.output_price)
        self.spent = Spent()
        self._plan: Plan | None = None
        self._closing = threading.Event()
        self.transport = Transport(self.url, api_key(options.api_key_env), sleep or self._pause)
        self.cache = Cache(cache_file(options.api_cache))
        self._pool = ThreadPoolExecutor(options.concurrency, thread_name_prefix="api")
        self._limit_key = digest([self.url, model, "top_logprobs"])
        self._top_logprobs: int = (self.cache.get(self._limit_key) or {}).get("most", TOP_LOGPROBS)
        self._proved = False  # that the server returns log-probabilities

    def close(self) -> None:
        """Waits for the requests under way, whose answers are kept, and says what was asked."""
        self._closing.set()
        self._pool.shutdown(cancel_futures=True)
        self.transport.close()
        self.cache.close()
        if self.spent.requests or self.spent.cached:
            self.options.say(self.spent.line(self.url, self.prices, self.transport.retries))

    # Labels

    def label_logprobs(self, requests: Sequence[LabelRequest]) -> list[LabelResult]:
        """See `Backend`. The first request of all is asked alone: it shows what the server can do."""
        results: list[LabelResult] = []
        while len(results) < len(requests) and not self._proved and self._plan is None:
            results.append(self._label(requests[len(results)]))
        return results + self._in_order(self._label, requests[len(results) :])

    def _label(self, request: LabelRequest) -> LabelResult:
        """Where the server finds the request too long, the middle of the response is cut, more each time."""
        for halvings in range(CUTS + 1):
            answer = self._ask_labels(request.render(_without_middle(request.text, halvings)))
            if answer is None:
                return LabelResult((-1.0,) * len(request.labels), 1.0, False)  # a rehearsal
            if TOO_LONG not in answer:
                return label_result(answer, request.labels, request.with_mass, halvings > 0)
            if not request.text:
                break
        raise DataError(
            f"{request.group}: request and question alone are too long for {self.name} at {self.url}; remove the row "
            "or use a model with a longer context"
        )

    def _ask_labels(self, messages: Messages) -> Answer | None:
        asked = {"messages": _plain(messages), "max_tokens": 1, "temperature": 1, "top_p": 1, "logprobs": True}
        while True:
            try:
                return self._ask(asked | {"top_logprobs": self._top_logprobs}, self._prove)
            except Refused as refused:
                if _is_too_long(refused):
                    answer: Answer = {TOO_LONG: str(refused)}
                    self.cache.put(self._key(asked | {"top_logprobs": self._top_logprobs}), answer)
                    return answer
                self._lower_top_logprobs(refused)

    def _prove(self, answer: Answer) -> None:
        """Raises ModelError for an answer without log-probabilities."""
        try:
            label_result(answer, ((),), with_mass=False, truncated=False)
        except MissingLogprobs as missing:
            raise self._no_logprobs(str(missing)) from None
        self._proved = True

    def _no_logprobs(self, detail: str) -> ModelError:
        return ModelError(
            f"{self.url} does not return log-probabilities ({detail}); use --judge rating or pairwise-verdict, which "
            "read text, or another server"
        )

    def _lower_top_logprobs(self, refused: Refused) -> None:
        """To what the server says that it allows; raises its refusal where it speaks of something else."""
        message = str(refused)
        if "logprobs" not in message:
            raise self._refusal(refused)
        allowed = [int(number) for number in re.findall(r"\d+", message) if 0 < int(number) < self._top_logprobs]
        if self._proved or not allowed:
            raise self._no_logprobs(f"HTTP {refused.status}: {message}")
        self._top_logprobs = max(allowed)
        self.cache.put(self._limit_key, {"most": self._top_logprobs})

    # Samples

    def generate(
        self, requests: Iterable[SampleRequest], sampling: Sampling, done: Container[str] = ()
    ) -> Iterator[list[SampleResult]]:
        """See `Backend`. A prompt at a time, in order; the server alone knows which prompts are too long for it."""
        number, waiting = sampling.num_responses, deque[tuple[SampleRequest, list[Future[Response]]]]()
        try:
            for request in requests:
                if request.key in done:
                    continue
                if self._plan is not None:
                    yield [self._result(request, [self._draw(request, sampling, k) for k in range(number)])]
                    continue
                drawn = [self._pool.submit(self._draw, request, sampling, k) for k in range(number)]
                waiting.append((request, drawn))
                while len(waiting) * number > AHEAD * self.options.concurrency:
                    yield [self._next(waiting)]
            while waiting:
                yield [self._next(waiting)]
        finally:
            _cancel(future for _, futures in waiting for future in futures)

    def _next(self, waiting: deque[tuple[SampleRequest, list[Future[Response]]]]) -> SampleResult:
        request, futures = waiting[0]
        responses = [future.result() for future in futures]
        waiting.popleft()
        return self._result(request, responses)

    def _result(self, request: SampleRequest, responses: Sequence[Response]) -> SampleResult:
        """With the answers to the follow-up, put as the next turn behind each response."""
        answers: list[LabelResult] = []
        if request.follow_up is not None:
            question, labels = Message("user", request.follow_up.question), request.follow_up.labels

            def render(text: str) -> Messages:
                return (*request.messages, Message("assistant", text), question)

            answers = self.label_logprobs([LabelRequest(request.key, render, r.text, labels) for r in responses])
        return SampleResult(request.key, (), tuple(responses), tuple(answers))

    def _draw(self, request: SampleRequest, sampling: Sampling, sample: int) -> Response:
        seed = sampling.stream(request.key, sample) % (1 << SEED_BITS)
        asked = {"messages": _plain(request.messages), "max_tokens": sampling.max_new_tokens, "seed": seed}
        asked |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
        try:
            answer = self._ask(asked, response_of)
        except Refused as refused:
            if _is_too_long(refused):
                raise DataError(
                    f"{request.key}: too long for {self.name} at {self.url} ({refused}); remove the prompt or lower "
                    "--max-new-tokens"
                ) from None
            raise self._refusal(refused) from None
        except ValueError as error:
            raise ModelError(f"{self.url}: an answer without text ({error}); use another server") from None
        if answer is None:  # a rehearsal: as long as it may become, and unlike any other
            return Response(f"{seed:010d}".ljust(sampling.max_new_tokens * CHARACTERS_PER_TOKEN, "."))
        return response_of(answer)

    # Requests

    def _ask(self, asked: Answer, check: Callable[[Answer], object]) -> Answer | None:
        """The answer from the cache or the server; None where a rehearsal would have to ask.

        An answer is kept only when `check` does not raise. Raises Refused, StepError.
        """
        key = self._key(asked)
        found = self.cache.get(key)
        if self._plan is not None:
            self._plan.cached += found is not None
            if found is None:
                self._plan.add(asked)
            return found
        if found is not None:
            self.spent.from_cache()
            return found
        if not self.spent.take(self.options.max_requests):
            raise StepError(
                f"--max-requests {self.options.max_requests}: as many requests have been made; raise it, what has been "
                "answered is kept and the same command goes on from here"
            )
        answer = self.transport.post({"model": self.name, **asked})
        self.spent.used(answer.get("usage"))
        check(answer)
        self.cache.put(key, answer)
        return answer

    def _key(self, asked: Answer) -> str:
        return digest([self.url, self.name, asked])

    def _refusal(self, refused: Refused) -> SelfjudgeError:
        said = f"{self.url}: HTTP {refused.status}: {refused}"
        if refused.status in (401, 403):
            return ConfigError(
                f"{said}; is the key in the environment variable {self.options.api_key_env} the right one?"
            )
        return ModelError(f"{said} (model {self.name}); check --base-url and --model")

    def _in_order(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        if self._plan is not None:
            return [work(item) for item in items]
        futures = [self._pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            _cancel(futures)

    def _pause(self, seconds: float) -> None:
        """Between attempts; ends when the backend is closed."""
        if self._closing.wait(seconds):
            raise StepError(f"{self.url}: stopped while waiting to try again")

    @contextmanager
    def rehearsal(self) -> Generator[Plan]:
        """Within it nothing is asked: requests are counted, answers come from the cache or are stand-ins."""
        self._plan = Plan()
        try:
            yield self._plan
        finally:
            self._plan = None


def rehearse(backends: Sequence[OpenAIBackend], work: Callable[[], object]) -> None:
    """Says what `work` is going to ask; raises ConfigError where all backends together would ask more than allowed."""
    with ExitStack() as stack:
        plans = [stack.enter_context(backend.rehearsal()) for backend in backends]
        work()
    for backend, plan in zip(backends, plans, strict=True):
        backend.options.say(plan.line(backend.url, backend.prices))
    limit, needed = backends[0].options.max_requests, sum(plan.requests for plan in plans)
    if limit and needed > limit:
        raise ConfigError(f"--max-requests {limit}: this needs {needed}; raise it, or take fewer rows with --limit")


def _plain(messages: Messages) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _is_too_long(refused: Refused) -> bool:
    return refused.status in TOO_LONG_STATUS and TOO_LONG_WORDS.search(str(refused)) is not None


def _without_middle(text: str, halvings: int) -> str:
    """The text itself, or a half, a quarter, ... of its characters, from both ends."""
    if not halvings:
        return text
    keep = len(text) >> halvings
    return f"{text[: keep - keep // 2]}{CUT}{text[len(text) - keep // 2 :]}"


def _cancel(futures: Iterable[Future[Response]] | Iterable[Future[Result]]) -> None:
    """What has not begun is not begun; what is under way goes on and is kept."""
    for future in futures:
        future.cancel()
