"""Token budgets: taken from the memory, halved when it runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from test_hf_backend import backend, requests, values

from selfjudge import memory
from selfjudge.errors import ModelError
from selfjudge.forward import RowForward
from selfjudge.memory import TokenBudget, tokens_per_row
from selfjudge.rows import Row, Tree

TREES = [Tree([1] * 10, ([2] * 10, [3] * 20)), Tree([4] * 5, ([5] * 5,)), Tree([6] * 30, ([7] * 10, [8] * 10))]
"""Rows of 40, 10 and 50 tokens; the longest path has 40."""


def fails_above(tokens: int, tried: list[int]) -> Callable[[Row], list[int]]:
    """A computation that needs memory for at most `tokens` tokens."""

    def compute(row: Row) -> list[int]:
        tried.append(len(row.input_ids))
        if len(row.input_ids) > tokens:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return [branch.index for branch in row.branches]

    return compute


@pytest.mark.parametrize(
    ("limit", "expected", "left"),
    [
        (100, [100], 100),
        (60, [100, 50, 50], 50),
        # the row of all trees, then one of the first two; split up at 25, a single path may be longer than the budget
        (45, [100, 50, 20, 30, 10, 40, 40], 25),
    ],
)
def test_halved_until_it_fits(limit: int, expected: list[int], left: int):
    tried: list[int] = []
    said: list[str] = []
    budget = TokenBudget(100, said.append)
    found = [index for part in budget.compute(TREES, fails_above(limit, tried)) for index in part]
    assert found == list(range(5))
    assert tried == expected
    assert budget.tokens == left
    halved = [(100, 50), (50, 25)][: {100: 0, 60: 1, 45: 2}[limit]]
    assert said == [f"out of memory with {a} tokens in a row; going on with {b}" for a, b in halved]


def test_what_is_done_is_not_done_again():
    """The row of 40 fits, the one of 50 does not: only its own two branches are packed anew."""
    tried: list[int] = []
    list(TokenBudget(50, lambda _: None).compute([TREES[0], TREES[2]], fails_above(45, tried)))
    assert tried == [40, 50, 40, 40]


def test_the_smaller_budget_stays():
    tried: list[int] = []
    budget = TokenBudget(100, lambda _: None)
    list(budget.compute(TREES, fails_above(60, tried)))
    tried.clear()
    list(budget.compute(TREES, fails_above(60, tried)))
    assert tried == [50, 50]


def test_one_sequence_that_does_not_fit():
    with pytest.raises(ModelError, match="single sequence of 40 tokens; lower --max-length"):
        list(TokenBudget(100, lambda _: None).compute(TREES, fails_above(35, [])))


def test_other_errors_pass():
    def broken(_: Row) -> int:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        list(TokenBudget(100, lambda _: None).compute(TREES, broken))


def test_scores_do_not_depend_on_it(model_folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch):
    """A backend that runs out of memory above 300 tokens gives the results of one that does not, and says so once."""
    said: list[str] = []
    plain, short = backend(model_folder("llama")), backend(model_folder("llama"), say=said.append)
    forward = RowForward.__call__

    def limited(self: RowForward, row: Row) -> torch.Tensor:
        if len(row.input_ids) > 300:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, row)

    expected = values(plain.label_logprobs(requests(False)))
    monkeypatch.setattr(RowForward, "__call__", limited)
    torch.testing.assert_close(values(short.label_logprobs(requests(False))), expected, rtol=1e-5, atol=1e-5)
    assert said
    assert short.budget.tokens <= 300
    said.clear()
    short.label_logprobs(requests(False))
    assert not said


def test_tokens_from_free_memory(monkeypatch: pytest.MonkeyPatch):
    """Width 32, intermediate 48, float32: 4 * (8 * 32 + 3 * 48) = 1,600 bytes per token, in half of the memory."""
    model: Any = tiny.model("llama")
    for free, expected in ((1600 * 200, 100), (1 << 40, 2048)):
        monkeypatch.setattr(memory, "free_bytes", lambda _, free=free: free)
        assert tokens_per_row(model) == expected
