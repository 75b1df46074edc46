"""What an API is going to be asked, and what it was asked: counted, priced, said in one line.

plan = Plan()
plan.add(payload)
plan.line("http://127.0.0.1:8000/v1", Prices(0.15, 0.6))
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, NamedTuple

CHARACTERS_PER_TOKEN = 4
"""Of English text, roughly; an API's tokenizer is not known here."""


class Prices(NamedTuple):
    """US dollars per million tokens; 0 where not given."""

    input: float = 0.0
    output: float = 0.0

    def text(self, input_tokens: float, output_tokens: float, word: str) -> str:
        """`, about $0.12`; empty where no price was given."""
        if not any(self):
            return ""
        return f", {word} ${(input_tokens * self.input + output_tokens * self.output) / 1e6:,.2f}"


@dataclass
class Plan:
    """Requests that would be made: their number, characters of their messages, tokens that they may give at most."""

    requests: int = 0
    cached: int = 0
    characters: int = 0
    new_tokens: int = 0

    def add(self, payload: dict[str, Any]) -> None:
        """A request that is not in the cache."""
        self.requests += 1
        self.characters += sum(len(message["content"]) for message in payload["messages"])
        self.new_tokens += payload["max_tokens"]

    def line(self, url: str, prices: Prices) -> str:
        """All of it in one line; tokens are called rough because they are."""
        known = f", {self.cached} answers are in the cache" if self.cached else ""
        if not self.requests:
            return f"{url}: no requests{known}"
        tokens = self.characters // CHARACTERS_PER_TOKEN
        size = f"roughly {tokens:,} input tokens (characters / {CHARACTERS_PER_TOKEN})"
        cost = prices.text(tokens, self.new_tokens, "at most about")
        return f"{url}: {self.requests} requests{known}; {size}, at most {self.new_tokens:,} output tokens{cost}"


class Spent:
    """Requests made and their tokens by the server's own count, from any thread."""

    def __init__(self) -> None:
        self.requests = 0
        self.cached = 0
        self.input_tokens = 0
        self.output_tokens = 0
        self._lock = threading.Lock()

    def take(self, limit: int) -> bool:
        """Counts one request more; False where that would be above the limit (0: none)."""
        with self._lock:
            if limit and self.requests >= limit:
                return False
            self.requests += 1
            return True

    def from_cache(self) -> None:
        """Counts an answer that was there already."""
        with self._lock:
            self.cached += 1

    def used(self, usage: Any) -> None:
        """Adds what an answer's `usage` says; some servers leave it out."""
        if isinstance(usage, dict):
            with self._lock:
                self.input_tokens += _count(usage, "prompt_tokens")
                self.output_tokens += _count(usage, "completion_tokens")

    def line(self, url: str, prices: Prices, retries: int) -> str:
        """All of it in one line."""
        cost = prices.text(self.input_tokens, self.output_tokens, "in all")
        return (
            f"{url}: {self.requests} requests made, {self.cached} answers from the cache, {retries} retries; "
            f"{self.input_tokens:,} input and {self.output_tokens:,} output tokens by the server's count{cost}"
        )


def _count(usage: dict[str, Any], name: str) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) else 0
