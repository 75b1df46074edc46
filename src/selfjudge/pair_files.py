"""Rows -> a .jsonl, .json or .parquet file that is either whole or not there.

    write_whole(Path("pairs.parquet"), meta, rows, lambda: {"pairs": 12})

Rows go into a file beside it, which takes the final name when the last one is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from selfjudge.errors import ConfigError, StepError
from selfjudge.pair_formats import EXTRAS
from selfjudge.store import StepMeta, json_line, read_meta_at, refuse_differences, sync, write_json_atomic
from selfjudge.values import Row

WRITTEN_TOGETHER = 1024
"""Rows held at a time for Parquet."""

Write = Callable[[BinaryIO, Iterable[Row]], None]


def write_whole(path: Path, meta: StepMeta, rows: Iterable[Row], summary: Callable[[], dict[str, Any]]) -> None:
    """Writes all rows, then the meta beside them; `summary()` is asked for when the last row is written.

    Whatever `rows` raises leaves the old file, or none. Raises StepError when the disk refuses.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            FILE_TYPES[path.suffix](file, rows)
            file.flush()
            os.fsync(file.fileno())
        found = asdict(meta) | {"summary": summary(), "bytes": temporary.stat().st_size}
        write_json_atomic(_meta_of(path), found | {"done": False})  # the file is ours, whenever a kill comes
        temporary.replace(path)
        sync(path.parent)
        write_json_atomic(_meta_of(path), found | {"done": True})
    except OSError as error:
        raise StepError(f"{path}: cannot be written ({error.strerror or error}); give another --out") from error
    finally:
        temporary.unlink(missing_ok=True)


def summary_of_finished(path: Path, meta: StepMeta) -> dict[str, Any] | None:
    """The summary where the same rows are there already. Raises ConfigError for a file that is something else."""
    if not path.exists():
        return None
    found = read_meta_at(_meta_of(path), path)
    if found is None:
        problem = f"exists, but {_meta_of(path).name} does not: not an output of selfjudge"
        raise ConfigError(f"{path}: {problem}; give another --out, or delete the file")
    refuse_differences(path, found, meta)
    return found["summary"] if found["done"] and found["bytes"] == path.stat().st_size else None


def _meta_of(path: Path) -> Path:
    """`pairs.json` -> `pairs.json.meta.json`: `pairs.jsonl` beside it may be the output of another step."""
    return path.with_name(f"{path.name}.meta.json")


def _jsonl(file: BinaryIO, rows: Iterable[Row]) -> None:
    for row in rows:
        file.write(json_line(row).encode("utf-8"))


def _json(file: BinaryIO, rows: Iterable[Row]) -> None:
    """A list, one row a line."""
    before = "[\n"
    for row in rows:
        file.write((before + json_line(row).rstrip("\n")).encode("utf-8"))
        before = ",\n"
    file.write(b"\n]\n" if before == ",\n" else b"[]\n")


def _parquet(file: BinaryIO, rows: Iterable[Row]) -> None:
    """The first rows give the schema; the extra columns are numbers even where all of these are null."""
    import pyarrow
    import pyarrow.parquet

    remaining = iter(rows)
    first = list(islice(remaining, WRITTEN_TOGETHER))
    schema = pyarrow.Table.from_pylist(first).schema
    for name in EXTRAS:
        place = schema.get_field_index(name)
        schema = schema if place < 0 else schema.set(place, pyarrow.field(name, pyarrow.float64()))
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        while first:
            writer.write_table(pyarrow.Table.from_pylist(first, schema=schema))
            first = list(islice(remaining, WRITTEN_TOGETHER))


FILE_TYPES: dict[str, Write] = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}
