"""Finding the category of a request: the model picks a letter, read with the same label scorer as its judgements."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import islice
from typing import Any

from selfjudge.backends import Backend, LabelRequest
from selfjudge.errors import StepError
from selfjudge.measures import interval_of
from selfjudge.questions import QUESTIONS, flatten, read_table
from selfjudge.records import CATEGORIES, Example, Message

CLASSIFIED_TOGETHER = 256


@cache
def _wording() -> tuple[str, tuple[tuple[str, ...], ...]]:
    table = read_table(QUESTIONS / "categories.toml")
    return table["layout"].lstrip("\n"), tuple(tuple(table["labels"][name]) for name in CATEGORIES)


def classify(backend: Backend, examples: Sequence[Example]) -> list[Example]:
    """The examples, those without a category given the most probable one: one forward pass each, no text.

    Raises StepError where an API's answer names none of the categories.
    """
    unknown = [example for example in examples if example.category is None]
    if not unknown:
        return list(examples)
    results = backend.label_logprobs([_request(example) for example in unknown])
    for example, result in zip(unknown, results, strict=True):
        if result.reason is not None:
            raise StepError(f"{example.id}: its category cannot be found ({result.reason}); give the rows a `category`")
    found = iter(results)
    return [e if e.category else replace(e, category=_likeliest(next(found).logprobs)) for e in examples]


def _request(example: Example) -> LabelRequest:
    layout, labels = _wording()

    def render(text: str) -> tuple[Message, ...]:
        return (Message("user", layout.replace("{request}", text)),)

    return LabelRequest(example.id, render, flatten(example.messages), labels, with_mass=False)


def _likeliest(logprobs: Sequence[float]) -> str:
    return CATEGORIES[max(range(len(CATEGORIES)), key=lambda index: logprobs[index])]


def check_routing(backend: Backend, examples: Sequence[Example]) -> dict[str, Any]:
    """How well the model finds the categories that the examples state; they are hidden from it."""
    found = classify(backend, [replace(example, category=None) for example in examples])
    return routing_figures(
        [(str(stated.category), str(one.category)) for stated, one in zip(examples, found, strict=True)]
    )


def routing_figures(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """From pairs of a stated category and the one that was found: accuracy, and counts by stated and found."""
    confusion = [
        f"{stated} as {found}: {count}"
        for stated in CATEGORIES
        for found in CATEGORIES
        if (count := pairs.count((stated, found)))
    ]
    return {"accuracy": interval_of(sorted(float(stated == found) for stated, found in pairs)), "confusion": confusion}


class WithCategories:
    """Examples with their category, read anew as often as they are gone through; the model is asked once.

    What it answered is kept in a byte per example.
    """

    def __init__(self, backend: Backend, examples: Iterable[Example]) -> None:
        self.backend = backend
        self.examples = examples
        self._found = array("B")

    def __iter__(self) -> Iterator[Example]:
        remaining, number = iter(self.examples), 0
        while group := list(islice(remaining, CLASSIFIED_TOGETHER)):
            if number == len(self._found):  # nobody has been here before
                known = classify(self.backend, group)
                self._found.extend(CATEGORIES.index(str(example.category)) for example in known)
            for example in group:
                yield replace(example, category=CATEGORIES[self._found[number]])
                number += 1
