"""The names for Python: a judge to call, and the commands as functions with the same options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from selfjudge.checks import build_checked
from selfjudge.config import AlignConfig, BenchConfig, EvaluateConfig, JudgeConfig, SampleConfig, TrainConfig
from selfjudge.console import Console
from selfjudge.records import Example, Message, Response
from selfjudge.steps import OpenModel, Summary

Prompt = str | Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Ranked:
    """A response with its place in the list that was given."""

    index: int
    text: str
    score: float


class Judge:
    """A model as a judge of responses: log-odds of Yes against No in nats, or the scores of another `judge`.

    Options are those of `selfjudge judge` (`judge`, `device`, `dtype`, `questions`, `in_place`, ...). Raises
    ConfigError for an unknown option or model.
    """

    def __init__(self, model: str, **options: Any) -> None:
        from selfjudge.steps.judge import make_judge

        config = build_checked(JudgeConfig, {"model": model} | options)
        self._open = OpenModel(Console().say)
        self._judge = make_judge(config, self._open, config.judge, config.seed)

    def score(self, prompt: Prompt, responses: Sequence[str], category: str | None = None) -> list[float]:
        """One score per response, higher for a better one; NaN where it could not be judged.

        `prompt` is a user's message or a conversation of (role, content); `category` is chat, code, math or safety, and
        is found by the model when it is not given.
        """
        turns = [("user", prompt)] if isinstance(prompt, str) else prompt
        messages = tuple(Message(role, content) for role, content in turns)
        example = Example("prompt", messages, category, tuple(Response(text) for text in responses))
        return [score.value for score in self._judge([example])[0].scores]

    def rank(self, prompt: Prompt, responses: Sequence[str], category: str | None = None) -> list[Ranked]:
        """The responses, best first; equal scores keep the order given."""
        scores = self.score(prompt, responses, category)
        ranked = [Ranked(index, text, score) for index, (text, score) in enumerate(zip(responses, scores, strict=True))]
        return sorted(ranked, key=lambda entry: -entry.score)

    def close(self) -> None:
        """Frees the model's memory."""
        self._open.close()

    def __enter__(self) -> Judge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def bench(model: str, benchmark: str, out: str, *, quiet: bool = False, **options: Any) -> Summary:
    """Measures a judge on a benchmark into the folder `out`; options are those of `selfjudge bench`."""
    from selfjudge.steps import bench as step

    config = build_checked(BenchConfig, {"model": model, "benchmark": benchmark, "out": out} | options)
    return step.run(config, Console(quiet))


def align(model: str, prompts: str, *, quiet: bool = False, **options: Any) -> Summary:
    """The loop; options are those of `selfjudge align`. Returns the figures of the start and of each round."""
    from selfjudge import loop

    return loop.run(build_checked(AlignConfig, {"model": model, "prompts": prompts} | options), Console(quiet))


def sample(model: str, prompts: str, out: str, *, quiet: bool = False, **options: Any) -> Summary:
    """Samples responses into the file `out`; options are those of `selfjudge sample`. Returns its summary."""
    from selfjudge.steps import sample as step

    return step.run(
        build_checked(SampleConfig, {"model": model, "prompts": prompts, "out": out} | options), Console(quiet)
    )


def train(model: str, input: str, out: str, *, quiet: bool = False, **options: Any) -> Summary:
    """Trains on selected rows or pairs into the folder `out`; options are those of `selfjudge train`."""
    from selfjudge.steps import train as step

    config = build_checked(TrainConfig, {"model": model, "input": input, "out": out} | options)
    return step.run(config, Console(quiet))


def evaluate(model: str, benchmark: str, out: str, *, quiet: bool = False, **options: Any) -> Summary:
    """Measures a model into the file `out`; options are those of `selfjudge evaluate`. Returns its figures."""
    from selfjudge.steps import evaluate as step

    config = build_checked(EvaluateConfig, {"model": model, "benchmark": benchmark, "out": out} | options)
    return step.run(config, Console(quiet))
