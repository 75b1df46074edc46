"""The vLLM backend: the same figures as the transformers one, faster on GPUs, on all of the machine's at once.

    selfjudge sample --backend vllm --model path/to/model --prompts prompts.jsonl --out samples.jsonl

The engines live in processes of their own (see `vllm_processes`), which get token ids and give back token ids and
log-probabilities; rendering, cutting and label ids are the same code as for every backend. LoRA adapters are served
unmerged, on the base model. Prefix caching serves what prompts share.

A sample is a function of seed, prompt key, sample index and the model, up to rounding: vLLM's logits differ in the last
digits with what else is computed in a step, so that a draw close to a border between tokens can fall on either side.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from selfjudge.backends import BackendOptions, LabelRequest, LabelResult, SampleRequest, SampleResult, Sampling
from selfjudge.backends.prompts import LabelIds, Prompt, Prompts, Question
from selfjudge.backends.vllm_jobs import Draw, Drawn, Job, LabelsRead, Read, Settings
from selfjudge.backends.vllm_processes import EngineProcesses
from selfjudge.errors import ModelError
from selfjudge.model_names import ADAPTER_FILE, adapter_base
from selfjudge.models import ModelSource, load_tokenizer, quiet_libraries, read_outline
from selfjudge.rendering import Renderer

CPU_CACHE_BYTES = 1 << 30
CPU_STEP_TOKENS = 4096
CPU_BLOCK = 32  # tokens: the finest that vLLM's CPU attention takes; only whole blocks are shared
ADAPTER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM's `max_lora_rank` may be


class VLLMBackend:
    """See `selfjudge.backends.Backend`. On a CPU it is for tests; `cpu_engines` is the number of processes there."""

    def __init__(self, model: str, options: BackendOptions, cpu_engines: int = 1) -> None:
        quiet_libraries()
        source = ModelSource(model, options.device, options.dtype, options.trust_remote_code, options.threads)
        tokenizer = load_tokenizer(source)
        outline = read_outline(source, tokenizer)
        renderer = Renderer(tokenizer, model, options.thinking)
        self.name = model
        self.ends = sorted({*outline.ends, renderer.end_of_turn()})
        max_length = min(options.max_length or 1 << 30, outline.context_length)
        self.prompts = Prompts(renderer, model, outline.num_embeddings, max_length)
        devices = _devices(source) or [""] * cpu_engines
        self.processes = EngineProcesses(model, engine_settings(source, max_length), devices, options.threads)
        try:
            self.processes.wait_until_ready()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the engines' processes, and with them all their memory."""
        self.processes.close()

    # Labels

    def label_logprobs(self, requests: Sequence[LabelRequest]) -> list[LabelResult]:
        """See `Backend`. Neighbours of one group share their prefix in the cache of one engine."""
        asked = [self.prompts.ask(request) for request in requests]
        jobs = [(i, Read(one.ids, _flat(one.label_ids))) for i, one in enumerate(asked) if one.reason is None]
        groups = (list(members) for _, members in groupby(jobs, key=lambda job: requests[job[0]].group))
        results: dict[int, LabelResult] = {}
        for arrived in self.processes.run(groups):
            for index, result in arrived:
                assert isinstance(result, LabelsRead)
                one = asked[index]
                results[index] = label_result(result.logprobs, one.label_ids, requests[index].with_mass, one.truncated)
        return [results.get(i) or LabelResult.unread(requests[i], str(one.reason)) for i, one in enumerate(asked)]

    # Samples

    def generate(
        self, requests: Iterable[SampleRequest], sampling: Sampling, done: Container[str] = ()
    ) -> Iterator[list[SampleResult]]:
        """See `Backend`. Prompts are handed over as engines become free, and come back in the order they finish."""
        self.prompts.check(requests, sampling)
        refused: list[SampleResult] = []

        def ready() -> Iterator[list[tuple[Prompt, Job]]]:
            for request in requests:
                if request.key not in done:
                    prompt = self.prompts.of(request, sampling)
                    if prompt.reason is None:
                        yield [(prompt, self._draw(prompt, sampling))]
                    else:
                        refused.append(prompt.refusal)

        for arrived in self.processes.run(ready()):
            yield [self._sampled(prompt, result) for prompt, result in arrived]
        if refused:
            yield refused

    def _draw(self, prompt: Prompt, sampling: Sampling) -> Job:
        question = self._question(prompt)
        drawn = {
            "n": sampling.num_responses,
            "seed": sampling.stream(prompt.request.key, 0),  # vLLM adds the index of each sample
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "max_tokens": sampling.max_new_tokens,
            "stop_token_ids": self.ends,
        }
        return Draw(prompt.ids, drawn, question.ids, _flat(question.label_ids))

    def _question(self, prompt: Prompt) -> Question:
        follow_up = prompt.request.follow_up
        return Question([], ()) if follow_up is None else self.prompts.question(follow_up)

    def _sampled(self, prompt: Prompt, result: Any) -> SampleResult:
        assert isinstance(result, Drawn)
        label_ids = self._question(prompt).label_ids
        responses = tuple(self.prompts.response(one.ids, one.logprob, one.finished) for one in result.sequences)
        answers = tuple(label_result(answer.logprobs, label_ids, True, False) for answer in result.answers)
        return SampleResult(prompt.request.key, tuple(prompt.ids), responses, answers, truncated=prompt.truncated)


def engine_settings(source: ModelSource, max_length: int) -> Settings:
    """What an engine is started with: nothing is left to a default that could change a figure."""
    path = source.path
    base = adapter_base(path)
    engine: dict[str, Any] = {
        "model": base or path,
        "dtype": str(source.torch_dtype()).removeprefix("torch."),
        "max_model_len": max_length + 1,
        "trust_remote_code": source.trust_remote_code,
        "load_format": "safetensors",
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # not the model folder's own settings
        "logprobs_mode": "raw_logprobs",
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "seed": 0,  # of what has no seed of its own: nothing here
    }
    if source.torch_device().type == "cpu":
        engine |= {"enforce_eager": True, "block_size": CPU_BLOCK, "kv_cache_memory_bytes": CPU_CACHE_BYTES}
        # a prompt computed in two steps takes back the random number of the first, which CPU generators cannot
        engine |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(CPU_STEP_TOKENS, max_length + 1)}
    if base:
        engine |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _adapter_rank(path)}
    return Settings(engine, path if base else None)


def _adapter_rank(path: str) -> int:
    """The least rank that vLLM can be set to and that holds the adapter. Raises ModelError."""
    options = json.loads((Path(path) / ADAPTER_FILE).read_text(encoding="utf-8"))
    rank = max([options["r"], *options.get("rank_pattern", {}).values()])
    fitting = [allowed for allowed in ADAPTER_RANKS if allowed >= rank]
    if not fitting:
        raise ModelError(f"model {path}: vLLM serves adapters up to rank {ADAPTER_RANKS[-1]}, this has {rank}")
    return fitting[0]


def _devices(source: ModelSource) -> list[str]:
    """The GPUs to use, as CUDA_VISIBLE_DEVICES names them: the one that was named, or all; none on a CPU."""
    device = source.torch_device()
    if device.type == "cpu":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    return [names[device.index]] if ":" in source.device else names


def _flat(label_ids: LabelIds) -> list[int]:
    return [token for ids in label_ids for token in ids]


def label_result(logprobs: Sequence[float], label_ids: LabelIds, with_mass: bool, truncated: bool) -> LabelResult:
    """From log-probabilities of all ids, label after label, to one per label."""
    remaining = iter(logprobs)
    values = tuple(_log_sum_exp([next(remaining) for _ in ids]) for ids in label_ids)
    return LabelResult.of(values, math.fsum(map(math.exp, values)) if with_mass else math.nan, truncated)


def _log_sum_exp(logprobs: Sequence[float]) -> float:
    top = max(logprobs)
    return top + math.log(math.fsum(math.exp(value - top) for value in logprobs))
