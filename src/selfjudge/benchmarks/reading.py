"""Rows of an official benchmark -> Examples, checked, with ids that depend on their content alone.

    >>> needed_text({"subset": "math-prm"}, "subset")
    'math-prm'

The id is a digest of subset, prompt and responses. A row that is there several times is kept as often, with -2, -3, ...
behind the id: identical rows get identical scores, so it does not matter which of them is which.
An empty wrong response is a response like any other (models do answer nothing); an empty right one is refused.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import blake2b

from selfjudge.benchmarks.sources import PlacedRow, placed_rows
from selfjudge.errors import DataError
from selfjudge.forms import TAG_COLUMNS, Row, RowError, example_from_row
from selfjudge.records import CATEGORIES, Example

Complete = Callable[[PlacedRow, Example], Example]
"""Checks an example against its benchmark and adds its tags. Raises RowError."""
NEEDED = ("chosen", "rejected")
COLUMNS = ("prompt", "messages", "system", *NEEDED, *TAG_COLUMNS)
"""What an official row may bring along; its other columns are not the judge's business."""


def read_benchmark(source: str, split: str, complete: Complete) -> Iterator[Example]:
    """All rows, in the order of the files. Raises DataError that names the file and the row."""
    seen: Counter[str] = Counter()
    for placed in placed_rows(source, split):
        try:
            example = complete(placed, _example(placed.row))
        except RowError as error:
            raise DataError.at(placed.file, placed.number, str(error)) from None
        key = _content_id(example)
        seen[key] += 1
        yield replace(example, id=key if seen[key] == 1 else f"{key}-{seen[key]}")
    if not seen:
        raise DataError.at(source, None, "no rows")


def _example(row: Row) -> Example:
    missing = [column for column in NEEDED if row.get(column) is None]
    if missing:
        found = ", ".join(str(column) for column in row) or "none"
        raise RowError(f"no {' and no '.join(missing)}; needed are prompt, chosen, rejected; found columns {found}")
    kept = {column: row[column] for column in COLUMNS if column in row}
    if row.get("category") in CATEGORIES:
        kept["category"] = row["category"]
    example = example_from_row(kept)
    for index in example.gold or ():
        if not example.responses[index].text.strip():
            raise RowError("a response in chosen is empty; the right one must have a text")
    origin = {"source_id": str(row["id"])} if row.get("id") is not None else {}
    return replace(example, tags=example.tags | origin)


def needed_text(row: Row, column: str) -> str:
    """The column's text. Raises RowError where there is none."""
    value = row.get(column)
    if not isinstance(value, str) or not value:
        found = ", ".join(str(name) for name in row)
        raise RowError(f"no text in the column {column}, which says what the row counts for; found columns {found}")
    return value


def check_counts(example: Example, right: int, wrong: int) -> None:
    """Raises RowError unless there are so many right and wrong responses."""
    found = len(example.gold or ())
    others = len(example.responses) - found
    if (found, others) != (right, wrong):
        raise RowError(f"{right} chosen and {wrong} rejected responses are needed, found {found} and {others}")


def _content_id(example: Example) -> str:
    """16 hexadecimal digits."""
    place = [example.tags.get("domain"), example.tags.get("subset")]
    texts = [response.text for response in example.responses]
    content = json.dumps([place, example.messages, texts, example.gold], ensure_ascii=False, separators=(",", ":"))
    return blake2b(content.encode("utf-8"), digest_size=8).hexdigest()
