"""Finding the category of a request: the model picks a letter, read with the same label scorer as its judgements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from selfjudge.backends import Backend, LabelRequest
from selfjudge.questions import QUESTIONS, flatten, read_table
from selfjudge.records import CATEGORIES, Example, Message


@cache
def _wording() -> tuple[str, tuple[tuple[str, ...], ...]]:
    table = read_table(QUESTIONS / "categories.toml")
    return table["layout"].lstrip("\n"), tuple(tuple(table["labels"][name]) for name in CATEGORIES)


def classify(backend: Backend, examples: Sequence[Example]) -> list[Example]:
    """The examples, those without a category given the most probable one: one forward pass each, no text."""
    unknown = [example for example in examples if example.category is None]
    if not unknown:
        return list(examples)
    found = iter(backend.label_logprobs([_request(example) for example in unknown]))
    return [e if e.category else replace(e, category=_likeliest(next(found).logprobs)) for e in examples]


def _request(example: Example) -> LabelRequest:
    layout, labels = _wording()

    def render(text: str) -> tuple[Message, ...]:
        return (Message("user", layout.replace("{request}", text)),)

    return LabelRequest(example.id, render, flatten(example.messages), labels, with_mass=False)


def _likeliest(logprobs: Sequence[float]) -> str:
    return CATEGORIES[max(range(len(CATEGORIES)), key=lambda index: logprobs[index])]
