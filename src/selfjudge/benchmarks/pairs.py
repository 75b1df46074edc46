"""A user's own rows: right and wrong responses in any of the accepted shapes (`selfjudge.forms`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from selfjudge.readers import read_examples
from selfjudge.records import Example


def read(source: str) -> Iterator[Example]:
    """The rows of a file; each needs responses of which some are known to be right."""
    return read_examples(source, ("responses", "gold"))


def summarise(_: Iterable[Example]) -> dict[str, Any]:
    """Nothing beyond the figures that every benchmark gets."""
    return {}
