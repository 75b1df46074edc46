"""Turn a language model into its own preference classifier: score, rank, select, train, repeat.

    import selfjudge as sj

    with sj.Judge("path/to/model") as judge:
        judge.score("What is 2 + 2?", ["4", "5"])                       # log-odds in nats, one per response
    sj.align("path/to/model", "prompts.jsonl", rounds=3)                # the loop, resumable

Nothing heavy is imported before a name is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfjudge.api import Judge, align, bench, evaluate, sample, train

__version__ = "0.1.0"
__all__ = ["Judge", "align", "bench", "evaluate", "sample", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("selfjudge.api"), name)
    raise AttributeError(f"module 'selfjudge' has no attribute {name!r}")
