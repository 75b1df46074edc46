"""Where a benchmark's rows come from: a dataset on the hub, a folder or a file -> numbered rows.

    for file, number, row in placed_rows("allenai/reward-bench", "filtered"):
        ...

A hub dataset is downloaded once and then read like any folder. Of a folder, every file with rows counts (sorted by
path), unless some carry the wanted split's name (`filtered-00000-of-00001.parquet`, `filtered.jsonl`): then these
alone. A split in two places, a missing part of it, or another split instead are refused.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from selfjudge.errors import DataError
from selfjudge.forms import Row
from selfjudge.model_names import HUB_NAME
from selfjudge.readers import FORMATS, read_objects

PART = re.compile(r"(?P<split>.+?)-(?P<number>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]+)?")
"""How the hub names the parts of a split."""
SPLITS = ("train", "validation", "test", "raw", "filtered")
ROW_FORMATS = tuple(name for name in FORMATS if name != ".txt")
"""A text file beside the rows is a licence or a description."""


class PlacedRow(NamedTuple):
    """A row, the file that it stands in, and its number there, counted from 1."""

    file: str
    number: int
    row: Row


def placed_rows(source: str, split: str) -> Iterator[PlacedRow]:
    """All rows of that split. Raises DataError where there is no such source, or it is not clear what to read."""
    for file in files_of(source, split):
        for number, row in read_objects(file):
            yield PlacedRow(str(file), number, row)


def files_of(source: str, split: str) -> list[Path]:
    """The files to read, in their order."""
    path = Path(source)
    if path.is_file():
        return _of_split([path], source, split)
    folder = path if path.is_dir() else _downloaded(source)
    found = [file for file in sorted(folder.rglob("*")) if _has_rows(file, folder)]
    if not found:
        raise DataError.at(source, None, f"the folder holds no rows; readable are {', '.join(ROW_FORMATS)}")
    return _of_split(found, source, split)


def _has_rows(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and _bare_name(file)[1] in ROW_FORMATS and file.is_file() and not _is_description(file)


def _bare_name(file: Path) -> tuple[str, str]:
    """Name without its extension, and the extension without .gz."""
    inner = Path(file.name.removesuffix(".gz"))
    return inner.stem, inner.suffix.lower()


def _is_description(file: Path) -> bool:
    """A JSON object whose values are not all objects can hold no rows: it describes the others."""
    if _bare_name(file)[1] != ".json":
        return False
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        value = json.loads(content)
    except (OSError, EOFError, ValueError):
        return False  # reading its rows says what is wrong
    return isinstance(value, dict) and not all(isinstance(entry, dict) for entry in value.values())


# Splits


def _of_split(files: list[Path], source: str, split: str) -> list[Path]:
    """The files that carry the split's name; all of them where none carries any split's."""
    wanted = [file for file in files if _split_of(file) == split]
    if wanted:
        return _whole(wanted, source, split)
    others = sorted({_split_of(file) for file in files if _names_split(file)})
    if others:
        raise DataError.at(source, None, f"holds the split {', '.join(others)}; this benchmark needs {split}")
    return files


def _split_of(file: Path) -> str:
    stem = _bare_name(file)[0]
    part = PART.fullmatch(stem)
    return part["split"] if part else stem


def _names_split(file: Path) -> bool:
    return PART.fullmatch(_bare_name(file)[0]) is not None or _split_of(file) in SPLITS


def _whole(files: list[Path], source: str, split: str) -> list[Path]:
    """One file, or all parts of one set in one folder."""
    parts = [PART.fullmatch(_bare_name(file)[0]) for file in files]
    first = parts[0]
    if len(files) > 1 and (len({file.parent for file in files}) > 1 or not all(parts)):
        twice = f"the split {split} is there more than once ({files[0].name}, {files[1].name}); give one of the files"
        raise DataError.at(source, None, twice)
    if first is None:
        return files
    numbers, expected = [int(part["number"]) for part in parts if part], list(range(int(first["count"])))
    if sorted(numbers) != expected:
        problem = f"{len(numbers)} files of the split {split}, {len(expected)} parts are needed; give the whole folder"
        raise DataError.at(source, None, problem)
    return files


# The hub


def _downloaded(name: str) -> Path:
    """The folder of a hub dataset's files."""
    if not HUB_NAME.fullmatch(name) or name.startswith(".") or Path(name).parent.exists():
        raise DataError.at(name, None, "no such file or folder; give one of these, or a hub name owner/name")
    from huggingface_hub import snapshot_download

    patterns = [f"*{extension}{ending}" for extension in ROW_FORMATS for ending in ("", ".gz")]
    try:
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
    except (OSError, ValueError) as error:  # whatever keeps the hub away; ValueError: a name that it does not allow
        reason = type(error).__name__
        problem = f"cannot be had from the hub ({reason}); give --data: a folder or file with a copy of it"
        raise DataError.at(name, None, problem) from error
