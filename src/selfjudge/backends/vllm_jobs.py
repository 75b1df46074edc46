"""What the vLLM backend and its engines' processes tell each other: token ids, parameters, log-probabilities.

Read(ids=[5, 6, 7], label_ids=[20, 30])  ->  LabelsRead(logprobs=[-0.3, -1.4], cached=0)
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Settings(NamedTuple):
    """`engine`: keyword arguments of vLLM's EngineArgs; `adapter`: the folder of a LoRA adapter on the model."""

    engine: dict[str, Any]
    adapter: str | None = None


class Read(NamedTuple):
    """Asks for the log-probabilities of `label_ids` behind `ids`."""

    ids: list[int]
    label_ids: list[int]


class Draw(NamedTuple):
    """Asks for samples behind `ids`; `sampling` holds keyword arguments of vLLM's SamplingParams.

    With `question_ids` every sample, without its end token, is followed by them and read at `label_ids`.
    """

    ids: list[int]
    sampling: dict[str, Any]
    question_ids: list[int]
    label_ids: list[int]


class LabelsRead(NamedTuple):
    """Natural logs at temperature 1, before any filter; `cached`: leading tokens that came from the prefix cache."""

    logprobs: list[float]
    cached: int


class Sequence(NamedTuple):
    """A sample; `logprob` is the sum over its ids at temperature 1, before any filter."""

    ids: list[int]
    logprob: float
    finished: bool


class Drawn(NamedTuple):
    """The samples, and the answers to the question behind each where there is one."""

    sequences: list[Sequence]
    answers: list[LabelsRead]


Job = Read | Draw
Result = LabelsRead | Drawn
