"""The openai backend against a server that does what servers do: refuse, fail, cut off, leave out, ask to wait."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from api_server import Behaviour, Reply, Server, error, in_turn, labels, serving, text
from commands import summary

from selfjudge.backends import BackendOptions, FollowUp, LabelRequest, LabelResult, SampleRequest, Sampling
from selfjudge.backends.openai import CUT, CUTS, OpenAIBackend
from selfjudge.backends.openai_answers import ROUNDING, label_result
from selfjudge.backends.openai_cost import Plan, Prices
from selfjudge.backends.openai_transport import ATTEMPTS, FIRST_ATTEMPTS
from selfjudge.cli import main
from selfjudge.errors import DataError, ModelError, SelfjudgeError, StepError
from selfjudge.records import Message
from selfjudge.store import read_rows

KEY = "sk-secret-0123456789"
YES_NO = (("Yes", " Yes"), ("No", " No"))
GOOD = labels({"Yes": 0.5, " Yes": 0.25, "No": 0.125})
"""log(.75) - log(.125) = log 6."""


def request(number: int = 0, response: str = "four", labels: Any = YES_NO) -> LabelRequest:
    return LabelRequest(f"r{number}", lambda shown: (Message("user", f"Is {number} {shown}?"),), response, labels)


class Opened:
    """A backend on a server, with its waits and remarks."""

    def __init__(self, url: str, folder: Path, **options: Any) -> None:
        self.waits: list[float] = []
        self.said: list[str] = []
        chosen = {"base_url": url, "api_cache": str(folder / "api.sqlite3"), **options}
        self.backend = OpenAIBackend("tiny", BackendOptions(**chosen, say=self.said.append), sleep=self.waits.append)
        self.backend.transport._jitter = lambda: 1.0  # pyright: ignore

    def ask(self, *requests: LabelRequest) -> list[LabelResult]:
        return self.backend.label_logprobs(requests or [request()])


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    """`opened(behave, concurrency=2)`: a backend on a new server; `opened(server)` on one that is there."""
    closers: list[Any] = []

    def start(behave: Behaviour | Server | str, **options: Any) -> Opened:
        if callable(behave):
            server = behave = Server(behave)
            closers.append(server)
        made = Opened(behave if isinstance(behave, str) else behave.url, tmp_path, **options)
        made.server = behave  # type: ignore[attr-defined]
        closers.append(made.backend)
        return made

    yield start
    for closer in reversed(closers):
        closer.close()


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# Labels, read by hand


def read(probabilities: dict[str, float], sampled: str | None = None, asked: Any = YES_NO) -> LabelResult:
    return label_result(labels(probabilities, sampled).body, asked, True, False)


def test_spellings_add_up() -> None:
    """.5 + .25 for Yes; two entries with the same text, as byte-level tokens can have, add up too: .1 + .05 for No."""
    answer = labels({"Yes": 0.5, " Yes": 0.25, "yes!": 0.01, "No": 0.1}).body
    answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"].append({"token": "No", "logprob": math.log(0.05)})
    found = label_result(answer, YES_NO, True, False)
    assert found.logprobs == pytest.approx((math.log(0.75), math.log(0.15)))
    assert found.mass == pytest.approx(0.9)
    assert (found.bounded, found.reason, found.truncated) == (False, None, False)


@pytest.mark.parametrize(
    ("listed", "bound"),
    [
        ({"Yes": 0.5, "a": 0.25, "b": 0.05}, 0.1),  # the lowest of the list for each of 2 spellings; 0.2 is left
        ({"Yes": 0.5, "a": 0.3, "b": 0.19}, 0.01),  # what is left; twice the lowest is 0.38
        ({"Yes": 0.5, "a": 0.25, "b": 0.0}, 0.25),  # -9999 is no probability: twice 0.25 is more than is left
        ({"Yes": 1.0}, ROUNDING),  # nothing is left but what rounding hides
    ],
)
def test_a_label_outside_of_the_list_is_a_bound(listed: dict[str, float], bound: float) -> None:
    found = read(listed)
    assert found.logprobs == pytest.approx((math.log(listed["Yes"]), math.log(bound)), abs=2e-4)
    assert found.bounded
    assert found.mass == pytest.approx(listed["Yes"])


def test_a_sampled_token_at_the_end_of_the_list_is_not_its_last() -> None:
    """`z` was drawn with .001 and put into the list by that alone: two unlisted tokens can still have .1 each."""
    listed = {"Yes": 0.5, "a": 0.1, "z": 0.001}
    assert read(listed, sampled="z").logprobs[1] == pytest.approx(math.log(0.2))
    assert read(listed, sampled="Yes").logprobs[1] == pytest.approx(math.log(0.002))


def test_both_labels_outside_are_missing() -> None:
    found = read({"<think>": 0.99, "a": 0.005})
    assert all(map(math.isnan, found.logprobs))
    assert found.reason == "none of the labels is among the 2 most probable tokens that the server lists"
    assert found.mass == 0
    assert not found.bounded


# Labels, asked


def test_what_is_asked(opened: Callable[..., Any]) -> None:
    one = opened(lambda _: GOOD)
    (found,) = one.ask()
    assert found.logprobs[0] - found.logprobs[1] == pytest.approx(math.log(6))
    assert one.server.requests == [
        {"model": "tiny", "messages": [{"role": "user", "content": "Is 0 four?"}], "max_tokens": 1, "temperature": 1}
        | {"top_p": 1, "logprobs": True, "top_logprobs": 20}
    ]
    assert one.server.keys == [None]


def test_results_come_in_order_and_requests_overlap(opened: Callable[..., Any]) -> None:
    """Four at a time: a barrier that only four requests together pass. Later ones are answered first."""
    together = threading.Barrier(4, timeout=20)

    def behave(asked: dict[str, Any]) -> Reply:
        number = int(asked["messages"][0]["content"].split()[1])
        if number:
            together.wait()
            time.sleep(0.01 * (12 - number))
        return labels({"Yes": 0.5, "No": 1 / (number + 3)})

    one = opened(behave, concurrency=4)
    found = one.ask(*map(request, range(13)))
    assert [result.logprobs[1] for result in found] == pytest.approx([-math.log(n + 3) for n in range(13)])


def test_a_second_run_asks_nothing(opened: Callable[..., Any]) -> None:
    one = opened(lambda _: GOOD)
    asked = [request(number) for number in range(5)]
    first = one.ask(*asked)
    one.backend.close()
    again = opened(one.server)
    assert again.ask(*asked) == first
    assert len(one.server.requests) == 5
    again.backend.close()
    assert again.said[-1].startswith(f"{one.server.url}: 0 requests made, 5 answers from the cache, 0 retries")
    other = opened(one.server, api_cache=str(Path(one.backend.options.api_cache).with_name("other.sqlite3")))
    other.ask(asked[0])
    assert len(one.server.requests) == 6


def test_a_server_that_allows_fewer_logprobs(opened: Callable[..., Any]) -> None:
    """It is told once; a second run knows it from the cache."""

    def behave(asked: dict[str, Any]) -> Reply:
        if asked["top_logprobs"] > 5:
            return error(400, f"Requested sample logprobs of {asked['top_logprobs']}, greater than max allowed: 5")
        return GOOD

    one = opened(behave)
    one.ask(*map(request, range(3)))
    assert [asked["top_logprobs"] for asked in one.server.requests] == [20, 5, 5, 5]
    opened(one.server).ask(*map(request, range(3)))
    assert len(one.server.requests) == 4


def _without_logprobs(change: Callable[[dict[str, Any]], Any]) -> Reply:
    reply = labels({"Yes": 0.5, "No": 0.25})
    change(reply.body["choices"][0])
    return reply


@pytest.mark.parametrize(
    ("reply", "detail"),
    [
        (text("Yes"), "choices[0].logprobs is missing"),
        (_without_logprobs(lambda choice: choice.update(logprobs=None)), "choices[0].logprobs is missing"),
        (_without_logprobs(lambda choice: choice["logprobs"].update(content=[])), "logprobs.content is empty"),
        (
            _without_logprobs(lambda choice: choice["logprobs"]["content"][0].update(top_logprobs=None)),
            "choices[0].logprobs.content[0].top_logprobs is empty",
        ),
        (error(400, "logprobs is not supported by this model"), "HTTP 400: logprobs is not supported by this model"),
    ],
)
def test_missing_logprobs_are_refused_before_anything_else(
    opened: Callable[..., Any], reply: Reply, detail: str
) -> None:
    """One request, although six were to be asked; what the server learns later is not hidden by the cache."""
    one = opened(lambda _: reply)
    with pytest.raises(ModelError) as raised:
        one.ask(*map(request, range(6)))
    assert str(raised.value).startswith(f"{one.server.url} does not return log-probabilities (")
    assert detail in str(raised.value)
    assert "use --judge rating or pairwise-verdict, which read text, or another server" in str(raised.value)
    assert len(one.server.requests) == 1
    one.server.behave = lambda _: GOOD
    assert one.ask()[0].reason is None


# Too long for the server


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 50 tokens. However, you requested 99 tokens",
        "the request exceeds the available context size, try increasing it",
        "The input (99 tokens) is longer than the model's context length (50 tokens).",
    ],
)
def test_the_middle_of_a_long_response_is_cut(opened: Callable[..., Any], message: str) -> None:
    """400 characters fit after two halvings: 100 of them, 50 from each end. The cuts are in the cache, too."""

    def behave(asked: dict[str, Any]) -> Reply:
        return error(400, message) if len(asked["messages"][0]["content"]) > 130 else GOOD

    response = "a" * 200 + "b" * 200
    one = opened(behave)
    long, short = one.ask(request(0, response), request(1))
    assert (long.truncated, short.truncated) == (True, False)
    shown = [asked["messages"][0]["content"] for asked in one.server.requests[:3]]
    assert [len(one) for one in shown] == [6 + 400, 6 + 200 + len(CUT), 6 + 100 + len(CUT)]
    assert shown[2] == f"Is 0 {'a' * 50}{CUT}{'b' * 50}?"
    assert opened(one.server).ask(request(0, response))[0].truncated
    assert len(one.server.requests) == 4


def test_what_never_fits_is_an_error(opened: Callable[..., Any]) -> None:
    one = opened(lambda _: error(400, "maximum context length is 5 tokens", retry_after="9"))
    with pytest.raises(DataError, match="r0: request and question alone are too long for tiny"):
        one.ask(request(0, "a" * 1000))
    assert len(one.server.requests) == CUTS + 1
    assert one.waits == []


# Servers that fail


def test_429_waits_as_long_as_the_server_says(opened: Callable[..., Any]) -> None:
    one = opened(in_turn(error(429, "slow down", Retry_After="7"), error(429, "slow", Retry_After="0"), GOOD))
    assert one.ask()[0].reason is None
    assert one.waits == [7.0, 0.0]
    until = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=90), usegmt=True)
    dated = opened(in_turn(error(503, "busy", Retry_After=until), GOOD))
    dated.ask(request(1))
    assert dated.waits == [pytest.approx(90, abs=5)]


def test_a_wait_that_is_too_long_is_an_error(opened: Callable[..., Any]) -> None:
    one = opened(lambda _: error(429, "quota", Retry_After="86400"))
    with pytest.raises(StepError, match=r"asks to wait 86400 seconds \(HTTP 429: quota\); .*the same command goes on"):
        one.ask()
    assert one.waits == []


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_failures_are_tried_again_later_and_later(opened: Callable[..., Any], status: int) -> None:
    """1, 2, 4 seconds, with full jitter; what Retry-After says in no known form is not followed."""
    bad = error(status, "out of luck", Retry_After="soon")
    one = opened(in_turn(bad, bad, bad, GOOD))
    assert one.ask()[0].logprobs[0] == pytest.approx(math.log(0.75))
    assert one.waits == [1.0, 2.0, 4.0]
    one.backend.close()
    assert "1 requests made, 0 answers from the cache, 3 retries; 100 input and 1 output tokens" in one.said[-1]


def test_jitter_takes_up_to_half(opened: Callable[..., Any]) -> None:
    one = opened(in_turn(error(500, "x"), error(500, "x"), GOOD))
    one.backend.transport._jitter = lambda: 0.0
    one.ask()
    assert one.waits == [0.5, 1.0]


@pytest.mark.parametrize(
    "bad",
    [
        Reply(GOOD.body, cut=True),
        Reply('{"choices": [{"index": 0, '),
        Reply("<html>502</html>"),
        Reply([1, 2]),
        Reply({"choices": []}),
        Reply({"error": {"message": "provider is down", "code": 502}}),
        Reply("\x1f\x8b not gzip", headers={"Content-Encoding": "gzip"}),
    ],
    ids=["cut", "half", "html", "list", "no choice", "error in 200", "encoding"],
)
def test_answers_that_are_none_are_asked_for_again(opened: Callable[..., Any], bad: Reply) -> None:
    one = opened(in_turn(bad, GOOD))
    assert one.ask()[0].reason is None
    assert one.waits == [1.0]
    always = opened(lambda _: bad)
    with pytest.raises(StepError, match=rf"fails \(.*\), {ATTEMPTS} attempts; .*the same command goes on from here$"):
        always.ask(request(1))
    assert len(always.server.requests) == ATTEMPTS
    assert always.waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (error(401, "Incorrect API key provided"), "HTTP 401: Incorrect API key provided; is the key in the"),
        (error(404, "The model `tiny` does not exist"), r"HTTP 404: The model `tiny` does not exist \(model tiny\)"),
        (Reply({"detail": "Not\nFound"}, 404), "HTTP 404: Not Found"),
        (Reply({"error": "plain"}, 422), "HTTP 422: plain"),
        (Reply("", 418), "HTTP 418: I'm a Teapot"),
        (Reply("x" * 5000, 400), "HTTP 400: x{300}[.]{3} "),
        (error(400, "temperature must be 0"), "HTTP 400: temperature must be 0"),
    ],
)
def test_other_refusals_fail_at_once(opened: Callable[..., Any], reply: Reply, said: str) -> None:
    one = opened(lambda _: reply)
    with pytest.raises(SelfjudgeError, match=said) as raised:
        one.ask(*map(request, range(6)))
    assert "\n" not in str(raised.value)
    assert len(one.server.requests) == 1
    assert one.waits == []


def free_url() -> str:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/v1"


def test_an_unreachable_server_is_named(opened: Callable[..., Any]) -> None:
    url = free_url()
    one = opened(url)
    with pytest.raises(StepError, match=rf"^{url}: cannot be reached \(.*refused.*\), {FIRST_ATTEMPTS} attempts"):
        one.ask()
    assert len(one.waits) == FIRST_ATTEMPTS - 1


# Samples

PROMPTS = [SampleRequest(f"p{number}", (Message("user", f"What is {number}?"),)) for number in range(6)]


def echo(asked: dict[str, Any]) -> Reply:
    return text(f"{asked['messages'][-1]['content']} {asked['seed']}", "length" if asked["seed"] % 2 else "stop")


def test_samples(opened: Callable[..., Any]) -> None:
    sampling = Sampling(3, temperature=0.8, top_p=0.9, max_new_tokens=12, seed=5)
    one = opened(echo, concurrency=2)
    results = [result for batch in one.backend.generate(PROMPTS, sampling) for result in batch]
    assert [result.key for result in results] == [prompt.key for prompt in PROMPTS]
    for result, prompt in zip(results, PROMPTS, strict=True):
        seeds = [sampling.stream(prompt.key, k) % 2**31 for k in range(3)]
        assert [r.text for r in result.responses] == [f"{prompt.messages[0].content} {seed}" for seed in seeds]
        assert [r.finished for r in result.responses] == [seed % 2 == 0 for seed in seeds]
        assert all((r.token_ids, r.logprob) == (None, None) for r in result.responses)
        assert (result.prompt_ids, result.answers) == ((), ())
    asked = one.server.requests[0]
    assert {name: asked[name] for name in ("model", "max_tokens", "temperature", "top_p")} == {
        "model": "tiny",
        "max_tokens": 12,
        "temperature": 0.8,
        "top_p": 0.9,
    }
    part = opened(one.server).backend.generate(PROMPTS, sampling, done={"p0", "p1", "p2", "p3", "p4"})
    assert list(part) == [[results[5]]]
    assert len(one.server.requests) == 18


def test_a_follow_up_is_asked_as_the_next_turn(opened: Callable[..., Any]) -> None:
    one = opened(lambda asked: GOOD if "logprobs" in asked else echo(asked))
    (batch,) = one.backend.generate([PROMPTS[0]._replace(follow_up=FollowUp("Right?", YES_NO))], Sampling(2))
    (result,) = batch
    assert [answer.logprobs[1] for answer in result.answers] == pytest.approx([math.log(0.125)] * 2)
    asked = [asked["messages"] for asked in one.server.requests if "logprobs" in asked]
    assert [[turn["role"] for turn in turns] for turns in asked] == [["user", "assistant", "user"]] * 2
    assert {turns[1]["content"] for turns in asked} == {response.text for response in result.responses}


def test_a_response_of_nothing_and_one_that_is_no_text(opened: Callable[..., Any]) -> None:
    one = opened(lambda _: text(None, "length"))
    ((result,),) = one.backend.generate(PROMPTS[:1], Sampling(1))
    assert (result.responses[0].text, result.responses[0].finished) == ("", False)
    bad = opened(lambda _: text([{"type": "text"}]))
    with pytest.raises(ModelError, match=r"an answer without text .*content is not text"):
        list(bad.backend.generate(PROMPTS[1:2], Sampling(1)))
    long = opened(lambda _: error(400, "maximum context length is 5 tokens"))
    with pytest.raises(DataError, match=r"p2: too long for tiny at .*; remove the prompt or lower --max-new-tokens"):
        list(long.backend.generate(PROMPTS[2:3], Sampling(1)))


# Costs


def test_a_plan_in_a_line() -> None:
    """8,000 characters are 2,000 tokens: 2 requests, 2000 x 3 + 20 x 5 = 6,100 millionths of a dollar."""
    plan = Plan()
    for _ in range(2):
        plan.add({"messages": [{"content": "x" * 4000}], "max_tokens": 10})
    plan.cached = 1
    assert plan.line("URL", Prices(3, 5)) == (
        "URL: 2 requests, 1 answers are in the cache; roughly 2,000 input tokens (characters / 4), at most 20 output "
        "tokens, at most about $0.01"
    )
    assert plan.line("URL", Prices()).endswith("at most 20 output tokens")
    assert Plan(cached=3).line("URL", Prices(3, 5)) == "URL: no requests, 3 answers are in the cache"


def test_the_limit_holds_where_nobody_counted_before(opened: Callable[..., Any]) -> None:
    one = opened(lambda _: GOOD, max_requests=3)
    with pytest.raises(StepError, match="--max-requests 3: as many requests have been made; raise it"):
        one.ask(*map(request, range(6)))
    assert len(one.server.requests) == 3


# Commands


def rows(path: Path, number: int) -> Path:
    made = [
        {"id": f"q{i}", "category": "math", "prompt": f"What is {i} + {i}?", "chosen": f"{2 * i}", "rejected": f"{i}!"}
        for i in range(number)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def api(command: str, url: str, *arguments: Any) -> list[str]:
    return [str(word) for word in (command, "--backend", "openai", "--base-url", url, "--model", "tiny", *arguments)]


def judged(asked: dict[str, Any]) -> Reply:
    """Prefers the right answer; lists no Yes where the response is `0`, and neither label where it is `1!`."""
    shown = asked["messages"][0]["content"].split("Response:\n")[1].split("\n")[0]
    if shown in ("0", "1!"):
        return labels({"No": 0.7, "x": 0.01} if shown == "0" else {"y": 0.9})
    return labels({"Yes": 0.25, "No": 0.5} if "!" in shown else {"Yes": 0.5, "No": 0.25})


def test_judge_says_the_costs_the_bounds_and_what_is_missing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    out = tmp_path / "scored.jsonl"
    with serving(judged) as server:
        command = api("judge", server.url, "--input", rows(tmp_path / "rows.jsonl", 4), "--out", out)
        assert main([*command, "--input-price", "2", "--output-price", "10"]) == 0
        assert len(server.requests) == 8
        assert set(server.keys) == {f"Bearer {KEY}"}
        said = capfd.readouterr()
        found = summary(out)
        assert (found["responses"], found["missing"], found["bounded"]) == (8, 1, 1)
        assert f"{server.url}: 8 requests; roughly " in said.err
        assert "at most 8 output tokens, at most about $0.00" in said.err
        assert "8 requests made, 0 answers from the cache, 0 retries; 800 input and 8 output tokens" in said.err
        assert "1 of 8 scores are bounds" in said.err
        scores = [score for row in read_rows(out) for score in row["scores"]]
        assert [score.get("evidence", {}).get("bounded") for score in scores].count(True) == 1
        assert scores[0]["value"] == pytest.approx(math.log(6 * 0.01) - math.log(0.7))  # 6 spellings of Yes
        assert scores[3]["value"] is None
        assert scores[3]["reason"].startswith("none of the labels")
        out.unlink()
        assert main(command) == 0
        assert len(server.requests) == 8
        assert f"{server.url}: no requests, 8 answers are in the cache" in capfd.readouterr().err
    everything = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert tmp_path / "cache" / "selfjudge" / "api.sqlite3" in everything
    assert not any(KEY.encode() in file.read_bytes() for file in everything)
    assert KEY not in said.err + said.out


def test_a_budget_that_is_too_small_is_refused_before_the_first_request(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Eight judgements, of which four are in the cache after --limit 2; bench counts in the same way."""
    with serving(judged) as server:
        source = rows(tmp_path / "rows.jsonl", 4)
        command = api("judge", server.url, "--input", source, "--out", tmp_path / "scored.jsonl")
        assert main([*command, "--max-requests", "7"]) == 2
        assert (
            "selfjudge: --max-requests 7: this needs 8; raise it, or take fewer rows with --limit"
            in capfd.readouterr().err
        )
        bench = api("bench", server.url, "--benchmark", source, "--out", tmp_path / "bench", "--check-routing", "2")
        assert main([*bench, "--max-requests", "9"]) == 2
        assert "--max-requests 9: this needs 10" in capfd.readouterr().err  # two more for the categories
        bench = [*bench[:-1], "0"]
        assert main([*bench, "--max-requests", "7"]) == 2
        assert server.requests == []
        other = api("judge", server.url, "--input", source, "--limit", "2", "--out", tmp_path / "two.jsonl")
        assert main([*other, "--max-requests", "4"]) == 0
        assert len(server.requests) == 4
        assert main([*command, "--max-requests", "4"]) == 0
        assert main([*bench, "--max-requests", "1"]) == 0
        assert len(server.requests) == 8


def test_sample_and_evaluate(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Samples have no token ids; sampling in place counts its questions and those of the comparison before it asks."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"id": f"p{i}", "prompt": f"Say {i}."}) + "\n" for i in range(3)))

    def behave(asked: dict[str, Any]) -> Reply:
        if "logprobs" not in asked:
            return echo(asked)
        return labels({"A": 0.5, "B": 0.1, "C": 0.1, "D": 0.1, "Yes": 0.12, "No": 0.01})

    with serving(behave) as server:
        command = api("sample", server.url, "--prompts", prompts, "--num-responses", "2")
        assert main([*command, "--out", str(tmp_path / "samples.jsonl")]) == 0
        assert len(server.requests) == 6
        found = list(read_rows(tmp_path / "samples.jsonl"))
        assert all(set(response) <= {"text", "finished"} for row in found for response in row["responses"])
        assert all("prompt_ids" not in row for row in found)
        assert summary(tmp_path / "samples.jsonl")["mean_tokens"] is None
        in_place = [*command, "--in-place", "--max-new-tokens", "20", "--out", str(tmp_path / "in_place.jsonl")]
        capfd.readouterr()
        assert main([*in_place, "--max-requests", "20"]) == 2
        assert "--max-requests 20: this needs 21" in capfd.readouterr().err  # 3 categories, 6 samples, 6 + 6 questions
        assert main([*in_place, "--max-requests", "21"]) == 0
        assert len(server.requests) == 6 + 21
        evaluation = ["--benchmark", rows(tmp_path / "rows.jsonl", 2), "--out", tmp_path / "evaluation.jsonl"]
        assert main(api("evaluate", server.url, *evaluation)) == 0
        assert summary(tmp_path / "evaluation.jsonl")["mean_tokens"] is None


def test_a_category_that_no_answer_names_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = rows(tmp_path / "rows.jsonl", 1)
    source.write_text(source.read_text().replace('"category": "math", ', ""))
    with serving(lambda _: labels({"<think>": 0.99})) as server:
        assert main([*api("judge", server.url, "--input", source, "--out", tmp_path / "x.jsonl"), "--quiet"]) == 2
        assert "q0: its category cannot be found (none of the labels is among the 1" in capfd.readouterr().err


def test_a_key_that_the_server_repeats_goes_nowhere(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    echoed = text(f"your key is {KEY}")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"id": "p", "prompt": "x"}\n')
    with serving(
        in_turn(error(500, f"{KEY} failed"), echoed, error(401, f"Incorrect API key provided: {KEY}"))
    ) as server:
        monkeypatch.setattr("selfjudge.backends.openai_transport.FIRST_WAIT", 0.01)
        command = [*api("sample", server.url, "--prompts", prompts, "--num-responses", "1"), "--api-key-env", "MY_KEY"]
        assert main([*command, "--out", str(tmp_path / "a.jsonl")]) == 0
        assert main([*command, "--seed", "1", "--out", str(tmp_path / "b.jsonl")]) == 2
    said = capfd.readouterr()
    assert "Incorrect API key provided: [key]; is the key in the environment variable MY_KEY the right one?" in said.err
    assert KEY not in said.out + said.err
    assert not any(KEY.encode() in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_resuming_with_another_server_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, out = rows(tmp_path / "rows.jsonl", 1), tmp_path / "scored.jsonl"
    with serving(judged) as one, serving(judged) as other:
        assert main(api("judge", one.url, "--input", source, "--out", out)) == 0
        assert main(api("judge", other.url, "--input", source, "--out", out)) == 2
        assert "base_url" in capfd.readouterr().err
        assert other.requests == []


SMALL = ("--input", "rows.jsonl", "--out", "x.jsonl")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ([], "--base-url is needed by --backend openai (or set OPENAI_BASE_URL)"),
        (["--base-url", "localhost:8000"], "--base-url localhost:8000: not an address; give http://HOST:PORT/v1"),
        (["--base-url", "http://h:99999/v1"], "--base-url http://h:99999/v1: not an address"),
        (["--base-url", "http://u:secret@h/v1"], "--base-url holds a user name or a password; leave it out"),
        (["--base-url", "http://h/v1", "--api-key-env", KEY], "--api-key-env is the name of an environment variable"),
        (["--base-url", "http://h/v1", "--api-key-env", "NOT_SET"], "--api-key-env NOT_SET: this environment variable"),
        (["--base-url", "http://h/v1", "--dtype", "float32"], "--dtype has no effect with --backend openai"),
        (["--base-url", "http://h/v1", "--token-budget", "9"], "--token-budget has no effect with --backend openai"),
        (
            ["--base-url", "http://h/v1", "--concurrency", "0"],
            "--concurrency '0': should be greater than or equal to 1",
        ),
        (
            ["--base-url", "http://h/v1", "--api-cache", "rows.jsonl"],
            "--api-cache rows.jsonl: cannot be used as a cache",
        ),
    ],
)
def test_options(
    options: list[str], line: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows(tmp_path / "rows.jsonl", 1)
    assert main(["judge", "--backend", "openai", "--model", "tiny", *SMALL, *options, "--quiet"]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"selfjudge: {line}")
    assert KEY not in lines[0]
    assert "secret" not in lines[0]


def test_options_without_the_backend_and_training(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows(tmp_path / "rows.jsonl", 1)
    assert main(["judge", "--model", "lab", *SMALL, "--base-url", "http://h/v1"]) == 2
    assert "--base-url has no effect with --backend hf; leave it out or use openai" in capfd.readouterr().err
    assert main(["train", "--model", "x", "--backend", "openai", "--input", "rows.jsonl", "--out", "t"]) == 2
    assert "--backend openai cannot train: a server's weights are out of reach" in capfd.readouterr().err
    monkeypatch.setenv("OPENAI_BASE_URL", free_url())
    monkeypatch.setattr("selfjudge.backends.openai_transport.FIRST_WAIT", 0.01)
    assert main(["judge", "--backend", "openai", "--model", "tiny", *SMALL, "--quiet"]) == 2
    assert f"{os.environ['OPENAI_BASE_URL']}: cannot be reached" in capfd.readouterr().err


def test_a_killed_run_keeps_every_answer(tmp_path: Path, child_env: dict[str, str]) -> None:
    """Killed after 25 of 60 answers, before any row is written; the next run asks what is missing and no more."""
    out, answered, killed = tmp_path / "scored.jsonl", threading.Event(), threading.Event()

    def behave(asked: dict[str, Any]) -> Reply:
        if len(server.requests) > 25 and not killed.is_set():
            answered.set()
            killed.wait(60)
        return judged(asked)

    with serving(behave) as server:
        command = api("judge", server.url, "--input", rows(tmp_path / "rows.jsonl", 30), "--out", out, "--quiet")
        command += ["--concurrency", "4", "--api-cache", str(tmp_path / "api.sqlite3")]
        with subprocess.Popen([sys.executable, "-m", "selfjudge.cli", *command], env=child_env) as child:
            assert answered.wait(60)
            time.sleep(0.3)  # the answers before are on their way to the disk
            child.send_signal(signal.SIGKILL)
        assert child.returncode == -signal.SIGKILL
        killed.set()
        assert list(read_rows(out)) == []
        before = len(server.requests)
        assert before <= 25 + 4
        assert main(command) == 0
        assert len(server.requests) - before == 60 - 25
        distinct = {json.dumps(asked, sort_keys=True) for asked in server.requests}
        assert len(distinct) == 60
    assert summary(out)["responses"] == 60
