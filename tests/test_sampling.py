"""The draw: its random numbers, its distribution through `generate`, and that nothing but the request decides it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from scipy import stats
from torch import Tensor

from selfjudge.backends import BackendOptions, FollowUp, SampleRequest, SampleResult, Sampling, hf
from selfjudge.backends.hf import HFBackend
from selfjudge.errors import DataError, ModelError
from selfjudge.records import Message, Response
from selfjudge.sampling import Pool, Running, choose, inverse_cdf, uniforms
from selfjudge.trainer import Objective, Policy, Preference

FOUR = ("llama", "qwen2", "gpt2", "phi")
ALL = (*FOUR, "mistral", "qwen3", "gemma2", "granite", "cohere", "gpt_oss", "opt-dropout", "falcon", "mamba")
TEXTS = ("Is it?", "What is the sum of two and three, of course?", "A", "Yes or No or yes or no", "B C D")
REQUESTS = [SampleRequest(f"prompt-{i}", (Message("user", text),)) for i, text in enumerate(TEXTS)]


def backend(folder: str, **options: Any) -> HFBackend:
    return HFBackend(folder, BackendOptions(device="cpu", **options))


def sample(model: HFBackend, sampling: Sampling, requests: Sequence[SampleRequest] = REQUESTS) -> list[SampleResult]:
    """All results, in the order of the requests."""
    found = {result.key: result for batch in model.generate(requests, sampling) for result in batch}
    return [found[request.key] for request in requests]


def tokens(results: Sequence[SampleResult]) -> list[list[tuple[int, ...]]]:
    return [[response.token_ids or () for response in result.responses] for result in results]


def logprobs(results: Sequence[SampleResult]) -> list[float]:
    return [response.logprob or math.nan for result in results for response in result.responses]


# Random numbers


def splitmix64(stream: int, step: int) -> float:
    """As published (Steele, Lea, Flood 2014), on Python's integers; the upper 53 bits as a float."""
    mask = (1 << 64) - 1
    z = (stream + 0x9E3779B97F4A7C15 * (step + 1)) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return ((z ^ (z >> 31)) >> 11) / 2**53


def test_uniforms_are_splitmix64():
    keys = [0, 1, 12345, (1 << 63) - 1, *(Sampling().stream("x", k) for k in range(50))]
    for step in (0, 1, 2, 255, 100_000):
        expected = [splitmix64(key, step) for key in keys]
        assert uniforms(torch.tensor(keys), step).tolist() == expected


def test_first_splitmix64_number_of_seed_0():
    """The published sequence of state 0 starts with e220a8397b1dcdaf."""
    assert uniforms(torch.tensor([0]), 0).item() == (0xE220A8397B1DCDAF >> 11) / 2**53


def test_uniforms_are_uniform_and_independent_of_their_neighbours():
    numbers = uniforms(torch.tensor([Sampling().stream(f"p{i}", k) for i in range(50) for k in range(4)]), 3)
    assert stats.kstest(numbers.numpy(), "uniform").pvalue > 1e-3
    one = torch.tensor([uniforms(torch.tensor([7]), step).item() for step in range(400)])
    assert stats.kstest(one.numpy(), "uniform").pvalue > 1e-3
    assert abs(torch.corrcoef(torch.stack([one[:-1], one[1:]]))[0, 1]) < 0.15


def test_streams_depend_on_seed_prompt_and_sample():
    streams = {Sampling(seed=s).stream(key, k) for s in (0, 1) for key in ("a", "b") for k in (0, 1)}
    assert len(streams) == 8
    assert all(0 <= stream < 1 << 63 for stream in streams)
    assert Sampling(seed=1, temperature=0.1).stream("a", 1) == Sampling(seed=1).stream("a", 1)


# The inverse of the cumulative distribution


def test_inverse_cdf_by_hand():
    """p = .5, 0, .25, .25: below .5 token 0, then 2, from .75 on 3; token 1 never."""
    logits = torch.tensor([0.5, 0.0, 0.25, 0.25]).log().expand(6, 4)
    uniform = torch.tensor([0.0, 0.499, 0.5, 0.749, 0.75, 1 - 2.0**-53], dtype=torch.float64)
    assert inverse_cdf(logits, uniform).tolist() == [0, 0, 2, 2, 3, 3]


@pytest.mark.parametrize("allowed", [[0], [255], [256], [999], [0, 256, 999], [3, 300, 301]])
def test_probability_zero_is_never_drawn(allowed: list[int]):
    """Also at the ends of [0, 1) and across blocks of 256."""
    logits = torch.full((1, 1000), -torch.inf)
    logits[0, allowed] = torch.linspace(0, 3, len(allowed))
    uniform = torch.cat([torch.linspace(0, 1 - 2.0**-53, 501, dtype=torch.float64), torch.tensor([2.0**-53])])
    drawn = inverse_cdf(logits.expand(len(uniform), -1), uniform)
    assert set(drawn.tolist()) == set(allowed)


def test_inverse_cdf_of_a_large_vocabulary():
    """20,000 evenly spaced uniforms give each of 1,000 tokens its share within the rounding of one count."""
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 2
    uniform = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    drawn = torch.cat([inverse_cdf(logits.expand(len(part), -1), part) for part in uniform.split(2000)])
    expected = torch.softmax(logits.double(), -1) * 20_000
    assert (torch.bincount(drawn, minlength=1000) - expected).abs().max() < 1.5


# Through generate


def exact(model: HFBackend, request: SampleRequest, change: Callable[[Tensor], Tensor]) -> Tensor:
    ids = torch.tensor([model.renderer.ids(request.messages)])
    with torch.no_grad():
        return change(model.causal(ids).logits[0, -1].double())


def keep(logits: Tensor, allowed: Tensor) -> Tensor:
    return torch.softmax(logits.masked_fill(~allowed, -torch.inf), -1)


def top_p(logits: Tensor) -> Tensor:
    """The fewest most probable tokens with at least 0.8 together, at temperature 1.5."""
    scaled = logits / 1.5
    p = torch.softmax(scaled, -1)
    order = p.argsort(descending=True)
    count = int((p[order].cumsum(0) < 0.8).sum()) + 1
    allowed = torch.zeros_like(p, dtype=torch.bool)
    allowed[order[:count]] = True
    return keep(scaled, allowed)


CASES: dict[str, tuple[Sampling, Callable[[Tensor], Tensor]]] = {
    "plain": (Sampling(temperature=1), lambda x: torch.softmax(x, -1)),
    "temperature": (Sampling(temperature=2), lambda x: torch.softmax(x / 2, -1)),
    "top-k": (Sampling(temperature=2, top_k=7), lambda x: keep(x / 2, x >= x.topk(7).values[-1])),
    "top-p": (Sampling(temperature=1.5, top_p=0.8), top_p),
    "min-p": (Sampling(temperature=1, min_p=0.1), lambda x: keep(x, x.softmax(-1) >= 0.1 * x.softmax(-1).max())),
}


def test_logprobs_of_choices():
    """Against float64: the chosen token's own log-probability, before temperature and filters."""
    logits = torch.randn(64, 2000, generator=torch.Generator().manual_seed(0)) * 5
    token, logprob = choose(logits, logits / 3, torch.linspace(0, 0.999, 64, dtype=torch.float64))
    expected = logits.double().log_softmax(-1).gather(1, token[:, None])[:, 0]
    torch.testing.assert_close(logprob.double(), expected, rtol=0, atol=5e-6)
    assert choose(logits, logits, None)[0].tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("case", CASES)
def test_distribution_of_first_tokens(model_folder: Callable[..., str], case: str):
    """Chi-square of 4,000 samples against the exact probabilities; tokens expected below 5 times are one class."""
    settings, change = CASES[case]
    model = backend(model_folder("llama", eos_token_id=None))
    many = Sampling(
        4000, settings.temperature, settings.top_p, settings.top_k, settings.min_p, max_new_tokens=1, seed=3
    )
    drawn = [ids[0] for ids in tokens(sample(model, many, REQUESTS[:1]))[0]]
    expected = exact(model, REQUESTS[0], change) * len(drawn)
    counts = torch.bincount(torch.tensor(drawn), minlength=len(expected)).double()
    assert counts[expected == 0].sum() == 0
    rare = expected < 5
    found = torch.cat([counts[~rare], counts[rare].sum()[None]])
    wanted = torch.cat([expected[~rare], expected[rare].sum()[None]])
    if wanted[-1] < 5:
        found, wanted = found[:-1], wanted[:-1] * found[:-1].sum() / wanted[:-1].sum()
    assert len(wanted) > 5
    assert stats.chisquare(found.numpy(), wanted.numpy()).pvalue > 1e-3


ENDS = list(range(3, tiny.VOCABULARY, 8))  # about every eighth token ends a response
LONG = [SampleRequest(f"long-{i}", (Message("user", "word " * 7 * i),)) for i in range(1, 5)]


@pytest.fixture
def ending(model_folder: Callable[..., str]) -> Callable[..., str]:
    """`ending("llama")`: the folder of a model whose responses end at very different lengths."""

    def folder(name: str, template: str | None = tiny.CHATML) -> str:
        path = model_folder(name, template, seed=1)
        (Path(path) / "generation_config.json").write_text(json.dumps({"eos_token_id": ENDS}))
        return path

    return folder


@pytest.mark.parametrize("name", ALL)
def test_ended_samples_are_replaced_and_nothing_changes(ending: Callable[..., str], name: str):
    """Nine prompts of 7 to 40 tokens, 1 to 30 new ones: refilled batches against every prompt alone."""
    requests, sampling = [*REQUESTS, *LONG], Sampling(num_responses=3, temperature=1, max_new_tokens=30, seed=5)
    alone = sample(backend(ending(name), sample_batch=3), sampling, requests)
    lengths = [len(ids) for row in tokens(alone) for ids in row]
    assert len(set(lengths)) > 6
    for places in (8, 0):  # a few at a time; as many as the memory allows
        refilled = sample(backend(ending(name), sample_batch=places), sampling, requests)
        assert tokens(refilled) == tokens(alone)
        assert logprobs(refilled) == pytest.approx(logprobs(alone), abs=1e-5 * max(lengths))


@pytest.mark.parametrize(("name", "refills"), [("llama", True), ("mistral", False)])
def test_rows_computed(ending: Callable[..., str], name: str, refills: bool):
    """Ended rows are taken out; where the cache allows, their places are filled again, which saves forward passes."""
    model = backend(ending(name), sample_batch=12)
    requests = [SampleRequest(f"p{i}", (Message("user", "Is it?"),)) for i in range(16)]
    seen: list[tuple[int, int]] = []
    model.causal.get_input_embeddings().register_forward_hook(lambda _, ids, __: seen.append(tuple(ids[0].shape)))
    drawn = tokens(sample(model, Sampling(num_responses=3, temperature=1, max_new_tokens=40), requests))
    steps = [rows for rows, columns in seen if columns == 1]
    needed = sum(len(ids) - 1 for row in drawn for ids in row)
    longest = [max(len(ids) for row in drawn[i : i + 4] for ids in row) - 1 for i in range(0, 16, 4)]
    assert max(steps) <= 12
    assert needed < sum(steps) < 0.7 * 12 * sum(longest)  # without taking out: every row as long as its batch
    assert (len(steps) < sum(longest)) == refills


@pytest.mark.parametrize("name", FOUR)
def test_neither_batch_nor_order_nor_restart_matters(model_folder: Callable[..., str], name: str):
    """Batches of one prompt need no padding; larger ones are padded on the left."""
    sampling = Sampling(num_responses=3, max_new_tokens=12, seed=5)
    whole = sample(backend(model_folder(name)), sampling)
    assert len({len(result.prompt_ids) for result in whole}) == len(whole)  # or nothing would be padded
    alone = sample(backend(model_folder(name), sample_batch=1), sampling)
    pairs = sample(backend(model_folder(name), sample_batch=6), sampling)
    back = sample(backend(model_folder(name)), sampling, REQUESTS[::-1])[::-1]
    for other in (alone, pairs, back):
        assert tokens(other) == tokens(whole)
        assert logprobs(other) == pytest.approx(logprobs(whole), abs=1e-4)
    assert len({ids for row in tokens(whole) for ids in row}) > 10


def test_done_pools_are_left_out_and_the_others_unchanged(
    model_folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    """Pools of two batches of one prompt each: two, two and one prompt."""
    monkeypatch.setattr(hf, "POOL_BATCHES", 2)
    model = backend(model_folder("llama"), sample_batch=2)
    sampling = Sampling(num_responses=2, max_new_tokens=5)
    whole = [result for batch in model.generate(REQUESTS, sampling) for result in batch]

    def again(done: Sequence[SampleResult]) -> list[SampleResult]:
        keys = frozenset(result.key for result in done)
        return [result for batch in model.generate(REQUESTS, sampling, keys) for result in batch]

    assert again([]) == again(whole[:1]) == again(whole[1:3]) == whole
    assert again(whole[:2]) == again(whole[:3]) == whole[2:]
    assert again(whole) == []


def test_a_sample_keeps_its_place_when_more_are_asked_for(model_folder: Callable[..., str]):
    model = backend(model_folder("llama"))
    two, four = (tokens(sample(model, Sampling(num_responses=n, max_new_tokens=6))) for n in (2, 4))
    assert two == [row[:2] for row in four]
    assert tokens(sample(model, Sampling(num_responses=2, max_new_tokens=6, seed=1))) != two


def test_greedy_is_the_argmax_at_every_step(model_folder: Callable[..., str]):
    model = backend(model_folder("qwen2"))
    results = sample(model, Sampling(num_responses=1, temperature=0, max_new_tokens=8))
    for result in results:
        ids = list(result.prompt_ids)
        for token in result.responses[0].token_ids or ():
            with torch.no_grad():
                assert model.causal(torch.tensor([ids])).logits[0, -1].argmax().item() == token
            ids.append(token)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("name", FOUR)
def test_logprobs_are_those_of_the_trainer(model_folder: Callable[..., str], tmp_path: Path, name: str, adapter: bool):
    """At temperature 1 and without filters, whatever the draw used; with an adapter whose B is not 0 as well."""
    folder = model_folder(name)
    if adapter:
        base = HFBackend(folder, BackendOptions(device="cpu")).causal
        base.name_or_path = folder
        tiny.with_lora(base).save_pretrained(str(tmp_path))
        tiny.tokenizer().save_pretrained(str(tmp_path))
        folder = str(tmp_path)
    model = backend(folder)
    results = sample(model, Sampling(num_responses=3, temperature=0.7, top_k=20, max_new_tokens=10))
    preferences = [
        Preference(r.key, r.prompt_ids, tuple(x.token_ids or () for x in r.responses), (0.0,) * 3, (0.0,) * 3)
        for r in results
    ]
    policy = Policy(model.model, 200, Objective("dpo", {"beta": 0.1}, 300))
    with torch.no_grad(), policy.forward:
        computed = torch.cat(policy.logps(preferences)).tolist()
    assert policy.forward.unpacked_because is None
    assert logprobs(results) == pytest.approx(computed, abs=1e-4)
    assert min(logprobs(results)) < -5


def out_of_memory_above(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a step with more than `rows` sequences fail as a GPU does."""
    advance = Pool.advance

    def limited(pool: Pool, running: Running) -> None:
        if len(running.ended) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        advance(pool, running)

    monkeypatch.setattr(Pool, "advance", limited)


def test_less_at_a_time_where_memory_runs_out(model_folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch):
    """Every prompt once, with the samples of a run that had enough; what fits is found once and kept."""
    sampling, said = Sampling(num_responses=3, temperature=0.7, max_new_tokens=10), list[str]()
    expected = sample(backend(model_folder("llama")), sampling)
    model = backend(model_folder("llama"), say=said.append, sample_batch=12)
    out_of_memory_above(6, monkeypatch)
    results = sample(model, sampling)
    assert [result.key for result in results] == [result.key for result in expected]
    assert tokens(results) == tokens(expected)
    assert said == ["out of memory with 12 sequences at a time; going on with 6"]
    assert tokens(sample(model, sampling)) == tokens(expected)
    assert len(said) == 1


def test_responses_to_one_prompt_that_do_not_fit(model_folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch):
    out_of_memory_above(2, monkeypatch)
    with pytest.raises(ModelError, match="out of memory sampling 3 responses to one prompt; lower --num-responses"):
        sample(backend(model_folder("llama")), Sampling(num_responses=3, max_new_tokens=10))


def test_ends(model_folder: Callable[..., str], tmp_path: Path):
    """Every eighth token ends a response, besides the tokenizer's own end: the last id, counted, not in the text."""
    ends = list(range(3, tiny.VOCABULARY, 8))
    tiny.save(tmp_path, "llama")
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": ends}))
    model = backend(str(tmp_path))
    stops = {*ends, tiny.tokenizer().eos_token_id}
    results = sample(model, Sampling(num_responses=8, temperature=1.5, max_new_tokens=6))
    kinds: set[bool] = set()
    for response in (response for result in results for response in result.responses):
        ids = response.token_ids or ()
        assert not stops & set(ids[:-1])
        assert response.finished == (ids[-1] in stops)
        assert response.finished or len(ids) == 6
        kept = ids[:-1] if response.finished else ids
        assert response.text == tiny.tokenizer().decode(list(kept), skip_special_tokens=True)
        kinds.add(response.finished)
    assert kinds == {True, False}
    without = sample(backend(model_folder("llama")), Sampling(num_responses=8, temperature=1.5, max_new_tokens=6))
    for row, other in zip(tokens(results), tokens(without), strict=True):
        assert all(whole[: len(ids)] == ids for ids, whole in zip(row, other, strict=True))


def test_generation_defaults_of_the_model_do_not_leak(model_folder: Callable[..., str], tmp_path: Path):
    tiny.save(tmp_path, "llama")
    defaults = {"do_sample": True, "top_k": 1, "top_p": 0.1, "temperature": 0.01, "repetition_penalty": 9.0}
    defaults |= {"no_repeat_ngram_size": 1, "max_length": 9, "min_new_tokens": 5, "num_beams": 1}
    (tmp_path / "generation_config.json").write_text(json.dumps(defaults | {"eos_token_id": 2}))
    sampling = Sampling(num_responses=3, max_new_tokens=10)
    found = sample(backend(str(tmp_path)), sampling)
    assert tokens(found) == tokens(sample(backend(model_folder("llama")), sampling))
    greedy = Sampling(num_responses=1, temperature=0, max_new_tokens=10)
    assert tokens(sample(backend(str(tmp_path)), greedy)) == tokens(sample(backend(model_folder("llama")), greedy))


def test_a_prompt_too_long_is_an_error_before_anything_is_sampled(
    model_folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    model = backend(model_folder("llama"), max_length=60)
    sampled: list[object] = []
    monkeypatch.setattr(model, "_sample_pool", lambda *pool: sampled.append(pool))
    long = SampleRequest("long-one", (Message("user", "word " * 60),))
    with pytest.raises(DataError, match=r"1 of 6 prompts are too long, the first is long-one with \d+ tokens"):
        next(iter(model.generate([*REQUESTS, long], Sampling(max_new_tokens=4))))
    assert not sampled


def test_the_longest_prompt_that_fits(model_folder: Callable[..., str]):
    """Prompt and new tokens fill the context exactly."""
    model = backend(model_folder("gpt2"))
    request = REQUESTS[0]
    room = tiny.CONTEXT - len(model.renderer.ids(request.messages))
    with pytest.raises(DataError, match="too long"):
        next(iter(model.generate([request], Sampling(1, max_new_tokens=room + 1))))
    model.options = BackendOptions(device="cpu", sample_batch=1)
    assert len(sample(model, Sampling(1, max_new_tokens=room), [request])[0].responses) == 1


def test_prompts_are_rendered_by_template_or_plainly(model_folder: Callable[..., str]):
    tokenizer = tiny.tokenizer()
    one = Sampling(1, max_new_tokens=1)
    chat = sample(backend(model_folder("llama")), one, REQUESTS[:1])[0]
    plain = sample(backend(model_folder("llama", None)), one, REQUESTS[:1])[0]
    assert tokenizer.decode(chat.prompt_ids) == "<|im_start|>user\nIs it?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(plain.prompt_ids) == "User: Is it?\n\nAssistant:"


def test_batches_hold_prompts_of_similar_length(model_folder: Callable[..., str]):
    model = backend(model_folder("llama"), sample_batch=2)
    lengths = [len(r.prompt_ids) for batch in model.generate(REQUESTS, Sampling(1, max_new_tokens=1)) for r in batch]
    assert all(a <= b for a, b in pairwise(lengths))


def test_a_model_without_a_cache_is_refused(model_folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch):
    model = backend(model_folder("llama"))
    monkeypatch.setattr(type(model.causal), "_supports_default_dynamic_cache", lambda _: False)
    with pytest.raises(ModelError, match="LlamaForCausalLM has no cache of transformers' own kind"):
        sample(model, Sampling(1, max_new_tokens=2))


# Follow-up questions


LABELS = (("Yes", " Yes", "yes"), ("No", " No", "no"))
FOLLOW_UPS = [FollowUp("Is it?", LABELS), FollowUp("Was the answer right? Yes or No.", LABELS)]


@torch.no_grad()
def plain_answer(model: HFBackend, result: SampleResult, response: Response, follow_up: FollowUp) -> list[float]:
    """Prompt, response without its end token and question through the whole model, in float64 from the logits on."""
    question = model.prompts.question(follow_up)
    ids = response.token_ids or ()
    whole = [*result.prompt_ids, *(ids[:-1] if response.finished else ids), *question.ids]
    logp = model.causal(torch.tensor([whole])).logits[0, -1].double().log_softmax(-1)
    values = [logp[list(group)].logsumexp(-1) for group in question.label_ids]
    return [*map(float, values), float(torch.stack(values).logsumexp(-1).exp())]


@pytest.mark.parametrize("template", [tiny.CHATML, None], ids=["chat", "plain"])
@pytest.mark.parametrize("name", [*FOUR, "falcon", "mistral", "gemma2"])
def test_follow_ups_are_answered_as_by_the_plain_model(ending: Callable[..., str], name: str, template: str | None):
    """Refilled batches, two questions of different lengths, finished and unfinished responses, chunks of 3 rows."""
    model = backend(ending(name, template), sample_batch=12, token_budget=3 * 32)
    requests = [r._replace(follow_up=FOLLOW_UPS[i % 2]) for i, r in enumerate([*REQUESTS, *LONG])]
    results = sample(model, Sampling(num_responses=3, temperature=1, max_new_tokens=12, seed=5), requests)
    assert {response.finished for result in results for response in result.responses} == {True, False}
    for request, result in zip(requests, results, strict=True):
        assert request.follow_up is not None
        assert result.from_cache == (name not in ("mistral", "gemma2"))
        for response, answer in zip(result.responses, result.answers, strict=True):
            expected = plain_answer(model, result, response, request.follow_up)
            assert [*answer.logprobs, answer.mass] == pytest.approx(expected, abs=1e-5, rel=1e-5)


def test_a_follow_up_changes_no_sample(ending: Callable[..., str]):
    model, sampling = backend(ending("llama"), sample_batch=6), Sampling(num_responses=3, max_new_tokens=12)
    asked = [request._replace(follow_up=FOLLOW_UPS[0]) for request in REQUESTS]
    with_questions, without = sample(model, sampling, asked), sample(model, sampling)
    assert [r._replace(answers=()) for r in with_questions] == without
    assert not any(result.answers for result in without)


def test_a_follow_up_needs_room_as_well(model_folder: Callable[..., str]):
    model = backend(model_folder("llama"), max_length=60)
    request, sampling = REQUESTS[1], Sampling(1, max_new_tokens=10)
    assert sample(model, sampling, [request])
    with pytest.raises(DataError, match="1 of 1 prompts are too long"):
        next(iter(model.generate([request._replace(follow_up=FOLLOW_UPS[1])], sampling)))
