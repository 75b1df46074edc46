"""A user's file -> a stream of Examples; every problem is one line that names the file and the row.

    for example in read_examples("prompts.jsonl"):
        print(example.id, example.messages[-1].content)

The extension says the format: .jsonl .ndjson .json .csv .tsv .txt (one prompt a line), each also with .gz, and
.parquet; `-` reads JSONL from standard input. JSONL, CSV and text stream, Parquet comes in batches, JSON is loaded
whole; of the rows gone by only digests of the ids are kept. `selfjudge.forms` lists the columns. Row numbers count
from 1: lines of a JSONL or text file, spreadsheet rows of a table (its header is row 1), entries of a JSON or Parquet
file.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from difflib import get_close_matches
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, cast

from selfjudge.errors import ConfigError, DataError
from selfjudge.forms import example_from_row
from selfjudge.ids import IdTable
from selfjudge.records import Example, Message
from selfjudge.values import Row, RowError

PARQUET_BATCH = 256
"""Rows held at a time."""
CELL_LIMIT = 2**31 - 1
"""Characters in one CSV cell; the csv module stops at 131,072 by default, a long response is longer."""
NEEDS = {
    "responses": "`selfjudge sample` adds them, or give a column response, responses, or chosen and rejected",
    "scores": "`selfjudge judge` adds them",
    "strengths": "`selfjudge select` adds them",
    "gold": "give columns chosen and rejected, or `gold`: the indices of the right responses, counted from 0",
}

NumberedRows = Iterator[tuple[int, Row]]


def read_examples(
    source: str | Path, need: Collection[str] = (), *, keep_ids: bool = True, keep_categories: bool = True
) -> Iterator[Example]:
    """The Examples of a file, in its order; `-` is standard input.

    `need` names the fields (keys of NEEDS) that every row must have. Without `keep_ids` the column `id` is ignored and
    ids are derived from the prompts, for files that repeat an id. Without `keep_categories` the column `category`
    is of another vocabulary and becomes the tag `source_category`.
    Raises DataError at once for a file that cannot be opened, and at the row for one that cannot be used.
    """
    unknown = sorted(set(need) - set(NEEDS))
    if unknown:
        raise ConfigError(f"unknown field {unknown[0]!r} in need; allowed: {', '.join(NEEDS)}")
    return examples_of(_shown(str(source)), read_objects(source), need, keep_ids, keep_categories)


def examples_of(
    name: str, rows: NumberedRows, need: Collection[str] = (), keep_ids: bool = True, keep_categories: bool = True
) -> Iterator[Example]:
    """See `read_examples`, for rows that are read already; `name` is what errors call their source."""
    seen, copies = IdTable(), IdTable()
    for number, row in rows:
        try:
            example = example_from_row(row, keep_categories)
        except RowError as error:
            raise DataError.at(name, number, str(error)) from None
        _check_needs(example, need, name, number)
        key = (keep_ids and example.id) or _derived_id(example.messages, seen, copies)
        if key in seen:
            raise DataError.at(name, number, f"id {key!r} is that of row {seen[key]} too; {_SAME_ID}")
        seen[key] = number
        yield example if example.id == key else replace(example, id=key)
    if not seen:
        raise DataError.at(name, None, "no rows")


_SAME_ID = "ids must differ (without an id column they are derived from the prompts)"


def _check_needs(example: Example, need: Collection[str], name: str, number: int) -> None:
    for field in need:
        value: object = getattr(example, field)
        if value is None or (field != "gold" and not value):
            raise DataError.at(name, number, f"no {field}: {NEEDS[field]}")


def content_id(messages: tuple[Message, ...]) -> str:
    """16 hexadecimal digits that depend on the conversation only."""
    content = json.dumps(messages, ensure_ascii=False, separators=(",", ":"))
    return blake2b(content.encode("utf-8"), digest_size=8).hexdigest()


def hash_share(key: str) -> float:
    """A number in [0, 1) that depends on the key alone: for splits that neither order nor number of rows changes."""
    return int.from_bytes(blake2b(key.encode("utf-8"), digest_size=8).digest(), "big") / 2**64


def _derived_id(messages: tuple[Message, ...], seen: IdTable, copies: IdTable) -> str:
    """The content's id; a prompt that is repeated gets -2, -3, ... ."""
    key = content_id(messages)
    if key not in seen:
        return key
    copies[key] = copies[key] + 1 if key in copies else 2
    return f"{key}-{copies[key]}"


# --- files -> rows


def read_objects(source: str | Path) -> NumberedRows:
    """Row number and plain object of every row. Raises DataError at once for a file that cannot be opened."""
    if str(source) == "-":
        return read_jsonl(sys.stdin.buffer, _shown("-"))
    path = Path(source)
    if path.is_dir():
        raise DataError.at(str(source), None, "is a folder; give a file")
    if not path.exists():
        raise DataError.at(str(source), None, f"no such file{_near_file(path)}")
    return _file_rows(path, str(source), _format_of(path, str(source)))


def _shown(source: str) -> str:
    return "<stdin>" if source == "-" else source


def _near_file(path: Path) -> str:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = get_close_matches(path.name, siblings, 1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def _format_of(path: Path, name: str) -> Callable[[BinaryIO, str], NumberedRows]:
    extension = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    read = FORMATS.get(extension.lower().removesuffix(".gz"))
    if read is None or extension.lower() == ".parquet.gz":
        allowed = f"{', '.join(FORMATS)}; all but .parquet also with .gz"
        raise DataError.at(name, None, f"unknown file type {extension!r}; allowed: {allowed}")
    return read


def _file_rows(path: Path, name: str, read: Callable[[BinaryIO, str], NumberedRows]) -> NumberedRows:
    try:
        with _opened(path) as stream:
            yield from read(stream, name)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError.at(name, None, f"damaged gzip file ({error}); copy it again") from None
    except OSError as error:
        raise DataError.at(name, None, f"cannot be read: {error.strerror or error}") from None


def _opened(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _lines(stream: Iterable[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Lines with their ends; decoded one by one, so that a wrong byte is reported at its line."""
    for number, line in enumerate(stream, start=1):
        yield number, _decoded(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, name, number)


def _decoded(content: bytes, name: str, number: int | None) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = f"byte 0x{content[error.start]:02x} at position {error.start + 1}"
        raise DataError.at(name, number, f"not UTF-8 ({wrong}); convert the file to UTF-8 first") from None


def _text(stream: BinaryIO, name: str) -> NumberedRows:
    for number, line in _lines(stream, name):
        if line.strip():
            yield number, {"prompt": line.rstrip("\r\n")}


def read_jsonl(stream: Iterable[bytes], name: str) -> NumberedRows:
    """Line number and object of every line that is not blank; `name` is what errors call the stream."""
    for number, line in _lines(stream, name):
        if not line.strip():
            continue
        hint = "; an array of objects belongs into a .json file" if number == 1 and line.startswith("[") else ""
        try:
            value = parse_json(line)
        except RowError as error:
            raise DataError.at(name, number, f"{error}{hint}") from None
        yield number, _object(value, name, number, hint)


def _json(stream: BinaryIO, name: str) -> NumberedRows:
    try:
        value = parse_json(_decoded(stream.read().removeprefix(b"\xef\xbb\xbf"), name, None) or "[]")
    except RowError as error:
        hint = "; one object a line belongs into a .jsonl file" if "Extra data" in str(error) else ""
        raise DataError.at(name, None, f"{error}{hint}") from None
    if isinstance(value, dict):
        keyed = cast(dict[str, Any], value).items()
        value = [{"id": key, **entry} if isinstance(entry, dict) else entry for key, entry in keyed]
    if not isinstance(value, list):
        raise DataError.at(name, None, "must hold a list of objects, or an object: id -> object")
    for number, entry in enumerate(cast("list[Any]", value), start=1):
        yield number, _object(entry, name, number, "; the file must hold a list of objects, or an object: id -> object")


def _object(value: Any, name: str, number: int, hint: str) -> Row:
    if not isinstance(value, dict):
        raise DataError.at(name, number, f"must be a JSON object, found {type(value).__name__}{hint}")
    return cast(Row, value)


def parse_json(text: str) -> Any:
    """The value of a JSON text, which must be possible to write again. Raises RowError."""
    try:
        value = JSON.decode(text)
        if "\\ud" in text or "\\uD" in text:  # half a surrogate pair is no character and cannot be written
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise RowError(f"malformed JSON: {error.msg} ({line}column {error.colno})") from None
    except UnicodeEncodeError:
        raise RowError("malformed JSON: half a surrogate pair (\\ud800-\\udfff) is no character") from None
    except (RecursionError, ValueError) as error:  # ValueError: an integer of more than 4,300 digits, or a constant
        raise RowError(f"malformed JSON: {error}") from None
    return value


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON number; write null for a missing one")


JSON = json.JSONDecoder(parse_constant=_refuse_constant)  # json.loads would make one for every row


def _csv(stream: BinaryIO, name: str, delimiter: str = ",") -> NumberedRows:
    csv.field_size_limit(CELL_LIMIT)
    lines = (line for _, line in _lines(stream, name))
    table = enumerate(csv.reader(lines, delimiter=delimiter, strict=True), start=1)
    number, header = 0, None
    try:
        for number, cells in table:
            if header is None:
                header = _header(cells, name)
            elif cells:
                yield number, _table_row(header, cells, name, number)
    except csv.Error as error:
        raise DataError.at(name, number + 1, f"malformed table: {error}") from None


def _tsv(stream: BinaryIO, name: str) -> NumberedRows:
    return _csv(stream, name, delimiter="\t")


def _header(cells: list[str], name: str) -> list[str]:
    header = [cell.strip() for cell in cells]
    twice = sorted({cell for cell in header if cell and header.count(cell) > 1})
    if twice:
        raise DataError.at(name, 1, f"the header names the column {twice[0]!r} twice")
    return header


def _table_row(header: list[str], cells: list[str], name: str, number: int) -> Row:
    """An empty cell is an absent value: a table has no other way to say so."""
    if len(cells) != len(header):
        raise DataError.at(name, number, f"{len(cells)} cells, but the header has {len(header)} columns")
    return {column: cell or None for column, cell in zip(header, cells, strict=True)}


def _parquet(stream: BinaryIO, name: str) -> NumberedRows:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        problem = "Parquet files need pyarrow: pip install 'selfjudge[parquet]'"
        raise DataError.at(name, None, problem) from None
    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=PARQUET_BATCH):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except pyarrow.ArrowInvalid as error:
        raise DataError.at(name, None, f"damaged Parquet file: {str(error).splitlines()[0]}") from None


FORMATS: dict[str, Callable[[BinaryIO, str], NumberedRows]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".txt": _text,
    ".parquet": _parquet,
}
