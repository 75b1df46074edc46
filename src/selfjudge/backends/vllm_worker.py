"""The child process of the vLLM backend: token ids in, token ids and log-probabilities out.

    python -m selfjudge.backends.vllm_worker FD

Pickled messages over the socket FD. In: the engine's `Settings`, then lists of numbered jobs, None at the end. Out: how
many sequences the engine runs at a time, then lists of numbered results, as they become ready. When the other end
closes without a None, its process is gone and this one ends itself, whatever it is doing.
"""

# pyright: reportMissingImports=false
# vLLM is an optional package, imported in the child process alone

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Any

from selfjudge.backends.vllm_jobs import Draw, Drawn, Job, LabelsRead, Read, Result, Sequence, Settings

GENERATED_BY = {"detokenize": False, "flat_logprobs": True}  # text is made by the parent, which has the tokenizer


@dataclass
class _Asked:
    """A draw whose samples are there and whose questions are being answered."""

    number: int
    label_ids: list[int]
    sequences: list[Sequence]
    answers: dict[int, LabelsRead]


class Engine:
    """vLLM's engine, fed with numbered jobs."""

    def __init__(self, settings: Settings) -> None:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.inputs.engine import tokens_input
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import RequestOutputKind, SamplingParams
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.llm_engine import LLMEngine

        self._prompt: Any = tokens_input
        self._params: Any = SamplingParams
        self._when_complete: Any = RequestOutputKind.FINAL_ONLY
        self._adapter = LoRARequest("adapter", 1, settings.adapter) if settings.adapter else None
        arguments = EngineArgs(**settings.engine)
        self._engine: Any = LLMEngine.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS)
        self._jobs: dict[str, tuple[int, Job]] = {}
        self._asked: dict[str, tuple[_Asked, int]] = {}
        self._named = 0

    def close(self) -> None:
        """Lets go of what outlives a process: files in the temporary folder."""
        self._engine.engine_core.shutdown()

    @property
    def max_sequences(self) -> int:
        """Sequences that run at a time."""
        return int(self._engine.vllm_config.scheduler_config.max_num_seqs)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._jobs and not self._asked

    def add(self, number: int, job: Job) -> None:
        """Begins a job with the next step."""
        if isinstance(job, Read):
            name = self._read(job.ids, job.label_ids)
        else:
            name = self._start(job.ids, {"logprobs": 0, **job.sampling})
        self._jobs[name] = number, job

    def step(self) -> Iterator[tuple[int, Result]]:
        """One forward pass; yields the results that are complete with it."""
        for output in self._engine.step():
            name = output.request_id
            if name in self._asked:
                asked, index = self._asked.pop(name)
                yield from self._answered(asked, index, _labels_read(output, asked.label_ids))
                continue
            number, job = self._jobs.pop(name)
            if isinstance(job, Read):
                yield number, _labels_read(output, job.label_ids)
            else:
                yield from self._drawn(number, job, [_sequence(one) for one in output.outputs])

    def _drawn(self, number: int, job: Draw, sequences: list[Sequence]) -> Iterator[tuple[int, Result]]:
        if not job.question_ids:
            yield number, Drawn(sequences, [])
            return
        asked = _Asked(number, job.label_ids, sequences, {})
        for index, sequence in enumerate(sequences):
            kept = sequence.ids[:-1] if sequence.finished else sequence.ids
            name = self._read([*job.ids, *kept, *job.question_ids], job.label_ids)
            self._asked[name] = asked, index

    def _answered(self, asked: _Asked, index: int, answer: LabelsRead) -> Iterator[tuple[int, Result]]:
        asked.answers[index] = answer
        if len(asked.answers) == len(asked.sequences):
            answers = [asked.answers[k] for k in range(len(asked.sequences))]
            yield asked.number, Drawn(asked.sequences, answers)

    def _read(self, ids: list[int], label_ids: list[int]) -> str:
        return self._start(ids, {"max_tokens": 1, "temperature": 0.0, "logprob_token_ids": label_ids})

    def _start(self, ids: list[int], sampling: dict[str, Any]) -> str:
        self._named += 1
        params = self._params(output_kind=self._when_complete, **GENERATED_BY, **sampling)
        self._engine.add_request(str(self._named), self._prompt(ids), params, lora_request=self._adapter)
        return str(self._named)

    def check_logprobs(self) -> None:
        """Raises RuntimeError unless log-probabilities are those of the model itself, without temperature and filters.

        One token is drawn where a filter leaves only the id 0: afterwards its log-probability would be 0 and that of
        the id 1 minus infinity.
        """
        ids = [0, 1]
        sampling = {"max_tokens": 1, "temperature": 0.5, "allowed_token_ids": [0], "logprob_token_ids": ids}
        name = self._start([0], sampling)
        found: list[float] = []
        while not found:
            found = [v for o in self._engine.step() if o.request_id == name for v in _labels_read(o, ids).logprobs]
        if not all(map(math.isfinite, found)) or sum(map(math.exp, found)) > 1 + 1e-3:
            raise RuntimeError(
                f"vLLM gives {found} as log-probabilities of the ids {ids} where a filter forbids one of them: they "
                "are not those of the model itself (logprobs_mode raw_logprobs has no effect in this version)"
            )


def _labels_read(output: Any, label_ids: list[int]) -> LabelsRead:
    flat = output.outputs[0].logprobs
    found = dict(zip(flat.token_ids, flat.logprobs, strict=True))  # of the token drawn and of those asked for
    return LabelsRead([float(found[token]) for token in label_ids], int(output.num_cached_tokens or 0))


def _sequence(completion: Any) -> Sequence:
    ids = [int(token) for token in completion.token_ids]
    return Sequence(ids, float(completion.cumulative_logprob), completion.finish_reason == "stop")


def serve(connection: Connection) -> None:
    """Works until it is told to end."""
    inbox: SimpleQueue[Any] = SimpleQueue()
    Thread(target=_receive, args=(connection, inbox), daemon=True).start()
    engine = Engine(inbox.get())
    engine.check_logprobs()
    connection.send(engine.max_sequences)
    while True:
        while engine.idle or not inbox.empty():
            jobs = inbox.get()
            if jobs is None:
                return engine.close()
            for number, job in jobs:
                engine.add(number, job)
        if results := list(engine.step()):
            connection.send(results)


def _receive(connection: Connection, inbox: SimpleQueue[Any]) -> None:
    """Runs beside the engine, so that the end of the parent is seen while weights load or a step computes."""
    try:
        while (message := connection.recv()) is not None:
            inbox.put(message)
    except (EOFError, ConnectionResetError):
        os.killpg(os.getpgid(0), signal.SIGKILL)  # with every process that the engine has started
    finally:
        inbox.put(None)  # also behind a message that cannot be read: the parent then sees the end, and why


if __name__ == "__main__":
    os.set_inheritable(int(sys.argv[1]), False)
    serve(Connection(int(sys.argv[1])))
    os._exit(0)  # taking the interpreter down with all that is loaded would take seconds
