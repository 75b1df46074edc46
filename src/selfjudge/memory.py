"""How much fits: tokens of a row from the device's memory, and less of them when the device runs out of it.

budget = TokenBudget(tokens=16384, say=print)
results = dict(item for row in budget.rows(trees) for item in read(row))
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import psutil
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers import PreTrainedModel

from selfjudge.errors import ModelError
from selfjudge.rows import Row, Tree, pack

MOST_TOKENS = {"cpu": 2048, "cuda": 16384}
"""More fill no device better: a CPU's caches overflow, a GPU's multipliers are busy."""
SHARE = 0.5
"""Of the free memory, for the activations of a row; the rest is for logits and for what fragments."""

Result = TypeVar("Result")


def free_bytes(device: torch.device) -> int:
    """Memory that can still be had on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def tokens_per_row(model: PreTrainedModel) -> int:
    """Tokens of a row that fit the free memory of the model's device, without gradient.

    One layer's activations at a time: about 8 of the hidden size (residuals, norms, queries, keys, values) and 3 of the
    intermediate size per token.
    """
    text = model.config.get_text_config()
    intermediate = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    per_token = (8 * text.hidden_size + 3 * intermediate) * model.dtype.itemsize
    fitting = int(SHARE * free_bytes(model.device)) // per_token
    return max(1, min(MOST_TOKENS.get(model.device.type, 2048), fitting))


class Size(NamedTuple):
    """What is computed at once: all its tokens (padding too), how many sequences, tokens of the longest of them."""

    tokens: int
    sequences: int
    longest: int


class TokenBudget:
    """Tokens of a packed row; halved, for good, each time that a row does not fit."""

    def __init__(self, tokens: int, say: Callable[[str], None]) -> None:
        self.tokens = tokens
        self.say = say

    def compute(self, trees: Sequence[Tree], function: Callable[[Row], Result]) -> Iterator[Result]:
        """`function` of every row of the trees; rows that were not done when memory ran out are packed again.

        A branch can then come twice, with the same result up to rounding. Raises ModelError where one sequence alone
        does not fit.
        """
        done: set[int] = set()
        while True:
            rows = [row for row in pack(trees, self.tokens) if not done.issuperset(b.index for b in row.branches)]
            for row in rows:
                size = Size(len(row.input_ids), len(row.branches), row.longest_path)
                result = self.attempt(partial(function, row), size)
                if result is None:
                    break
                done.update(branch.index for branch in row.branches)
                yield result
            else:
                return

    def attempt(self, function: Callable[[], Result], size: Size) -> Result | None:
        """The function's result; None where memory ran out, and the budget is then half of what was tried.

        Raises ModelError where what was tried is a single sequence.
        """
        try:
            return function()
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            if size.sequences == 1:
                raise ModelError(
                    f"out of memory with a single sequence of {size.longest} tokens; lower --max-length, or use a "
                    "smaller --dtype or model"
                ) from error
        self._halve(size.tokens)
        return None

    def _halve(self, tokens: int) -> None:
        gc.collect()
        clear_device_cache()
        self.tokens = tokens // 2
        self.say(f"out of memory with {tokens} tokens in a row; going on with {self.tokens}")
