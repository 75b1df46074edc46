"""What a command reads: a user's file, a pipe, or the built-in world by its name."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path

from selfjudge import lab
from selfjudge.errors import DataError
from selfjudge.readers import read_examples
from selfjudge.records import Example
from selfjudge.store import file_entry, json_line, read_meta

WORLD = ("lab", "lab-dev")
"""`lab`: the world's training prompts and its test questions; `lab-dev`: questions to choose settings on."""

Entry = dict[str, str]


def read_prompts(name: str, limit: int = 0) -> list[Example]:
    """Prompts to sample from, without responses. Raises DataError, also for a source without any row."""
    if name in WORLD:
        return _first(lab.prompts("train" if name == "lab" else "dev"), limit)
    rows = _first(read_examples(name), limit)  # answers that the file may hold are not the model's own
    return [Example(e.id, e.messages, e.category, reference=e.reference, tags=e.tags) for e in rows]


def read_scorable(name: str, need: Collection[str], limit: int = 0) -> list[Example]:
    """Rows that have at least the fields in `need`: for judging, selecting, training or evaluating."""
    if name in WORLD:
        return _first(lab.benchmark("test" if name == "lab" else "dev"), limit)
    _refuse_unfinished(name)
    return _first(read_examples(name, need), limit)


def _refuse_unfinished(name: str) -> None:
    """An interrupted step's output is not an input: the next step would take a part for the whole."""
    meta = read_meta(name) if name != "-" else None
    if meta is not None and not meta["done"]:
        raise DataError.at(name, None, f"its `{meta['step']}` step is not finished; run that command again first")


def _first(examples: Iterator[Example] | list[Example], limit: int) -> list[Example]:
    return list(islice(examples, limit or None))


def entry(name: str, examples: list[Example]) -> Entry:
    """What a step's meta records of its input: the file's digest, or that of the rows where there is no file."""
    if name == "-" or name in WORLD:
        digest = hashlib.sha256()
        for example in examples:
            digest.update(json_line(example.to_json()).encode())
        return {"name": name, "sha256": digest.hexdigest()}
    return file_entry(Path(name))
