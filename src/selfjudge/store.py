"""The only writer. A step's output is a JSONL file of rows keyed by `id`, and `<stem>.meta.json` beside it.

    with open_output("runs/judged.jsonl", StepMeta("judge", config, {"data": file_entry("data.jsonl")})) as output:
        if not output.finished:
            for example in examples:
                if example.id not in output.done_ids:
                    output.append([judged(example).to_json()])
            output.finish({"rows": len(output.done_ids)})

The meta is written first (`done` false) and last (`done` true), both times replaced as a whole. Rows are appended by
whole lines in one write, so a kill can only tear the last line; opening again cuts that line off and goes on. Other
options or inputs than those the rows were made with are refused. The path `-` writes to standard output, without meta.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn, cast

from selfjudge.errors import ConfigError, DataError, StepError
from selfjudge.ids import IdTable
from selfjudge.readers import parse_json
from selfjudge.values import RowError

Row = dict[str, Any]

BLOCK = 1 << 20
"""Bytes read at a time."""
JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
"""Of rows; json.dumps would make one for every row."""
PIPE_CLOSED = 128 + 13
"""Exit code of a program whose reader went away, as `head` leaves it (SIGPIPE)."""


@dataclass(frozen=True)
class StepMeta:
    """What a step's rows were made with; `config` holds only the options that change the rows."""

    step: str
    config: dict[str, Any]
    inputs: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    """Role -> {"name", "sha256"} (`file_entry`, `ids_entry`); only the digest counts, a file may move."""
    versions: dict[str, str] = field(default_factory=dict[str, str])
    """Package -> version at the time of finishing; recorded, never compared."""


class StepOutput:
    """The open output of one step; made by `open_output`."""

    def __init__(self, path: Path | None, descriptor: int, meta: StepMeta) -> None:
        self.path = path
        """None for standard output."""
        self.done_ids = IdTable()
        """Ids of the rows that are safe; left empty when the step was found finished."""
        self.finished = False
        """True when the step has already been finished with the same options; there is nothing left to do."""
        self.summary: dict[str, Any] = {}
        self._meta = meta
        self._descriptor = descriptor
        self._size = 0  # bytes of whole rows

    def append(self, rows: Iterable[Row]) -> None:
        """Writes whole lines at once; all of them are safe from a kill when this returns.

        Raises StepError for an id that is already there or when the disk refuses (then none of `rows` is kept),
        ValueError for NaN.
        """
        rows = list(rows)
        ids = self._new_ids(rows)
        content = "".join(json_line(row) for row in rows).encode("utf-8")
        try:
            write_all(self._descriptor, content)
        except BrokenPipeError:
            _leave_closed_pipe(self._descriptor)
        except OSError as error:
            with suppress(OSError):  # where even this fails, the next start cuts the torn line
                os.ftruncate(self._descriptor, self._size)
            raise self._not_written(error) from error
        self._size += len(content)
        for key in ids:
            self.done_ids[key] = len(self.done_ids)

    def finish(self, summary: dict[str, Any]) -> None:
        """Makes the rows durable, then marks the step as done. NaN in `summary` becomes null."""
        self.summary = cast(dict[str, Any], without_nan(summary))
        if self.path is not None:
            try:
                os.fsync(self._descriptor)
                self._write_meta(done=True)
            except OSError as error:
                raise self._not_written(error) from error
        self.finished = True

    def _new_ids(self, rows: list[Row]) -> set[str]:
        if self.finished:
            raise StepError(f"{self._name()}: the step is finished, nothing can be added")
        ids: set[str] = set()
        for row in rows:
            if row["id"] in self.done_ids or row["id"] in ids:
                raise StepError(f"{self._name()}: a row with the id {row['id']!r} has already been written")
            ids.add(row["id"])
        return ids

    def _name(self) -> str:
        return "standard output" if self.path is None else str(self.path)

    def _not_written(self, error: OSError) -> StepError:
        """After this the file holds exactly the rows in `done_ids`, or these and a torn line."""
        resume = "" if self.path is None else "; the same command goes on from there"
        problem = f"cannot be written ({error.strerror or error})"
        return StepError(f"{self._name()}: {problem}; {len(self.done_ids)} rows are safe{resume}")

    def _write_meta(self, done: bool) -> None:
        meta = asdict(self._meta) | {"done": done, "rows": len(self.done_ids), "bytes": self._size}
        write_json_atomic(meta_path(cast(Path, self.path)), meta | {"summary": self.summary})

    def resume(self) -> None:
        """Takes over the rows in the file, refuses what is not this step's, writes the first meta (`open_output`)."""
        try:
            self._take_over(os.fstat(self._descriptor).st_size)
            if not self.finished:
                os.ftruncate(self._descriptor, self._size)
                self._write_meta(done=False)
        except OSError as error:
            raise self._not_written(error) from error

    def _take_over(self, size: int) -> None:
        path = cast(Path, self.path)
        found = read_meta(path)
        if found is None and size:
            raise ConfigError(f"{path}: exists, but {meta_path(path).name} does not: {_NOT_OURS}")
        if found is None or (size == 0 and not _is_complete(found, size)):
            return  # no rows, so nothing that other options could contradict
        refuse_differences(path, found, self._meta)
        if _is_complete(found, size):
            self.finished, self.summary = True, found["summary"]
        else:
            self.done_ids, self._size = _whole_rows(path)


_NOT_OURS = "not an output of selfjudge; give another --out, or delete the file"


def _is_complete(meta: dict[str, Any], size: int) -> bool:
    """A finished file that was shortened afterwards is unfinished again: its missing rows are written once more."""
    return meta["done"] and meta["bytes"] == size


@contextmanager
def open_output(path: str | Path, meta: StepMeta) -> Generator[StepOutput, None, None]:
    """The output at `path`, new or resumed; `-` is standard output.

    Raises ConfigError for other options than last time or a file that is not a step's output, DataError for a broken
    line that is not the last one, StepError when another process has it open or it cannot be written.
    """
    if str(path) == "-":
        sys.stdout.flush()
        yield StepOutput(None, sys.stdout.fileno(), meta)
        return
    path = Path(path)
    if path.suffix != ".jsonl":
        raise ConfigError(f"output {path}: the name must end in .jsonl (or be - for standard output)")
    descriptor = _opened(path)
    try:
        _lock(descriptor, path)
        output = StepOutput(path, descriptor, meta)
        output.resume()
        yield output
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise StepError(
            f"{path}: cannot be written ({error.strerror}: {error.filename}); give another --out"
        ) from error


def _lock(descriptor: int, path: Path) -> None:
    """Held until the descriptor is closed; the kernel frees it after a kill."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StepError(f"{path}: another process is writing it; wait for that, or give another --out") from None


def _whole_rows(path: Path) -> tuple[IdTable, int]:
    """The ids of the whole rows and the bytes they take; the rest of the file is a torn last line."""
    ids = IdTable()
    size = 0
    torn: int | None = None
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if torn is not None:
                raise DataError.at(str(path), torn, f"broken line in the middle of the file; {_MENDING}")
            key = _row_id(line)
            if key is None:
                torn = number
                continue
            if key in ids:
                raise DataError.at(str(path), number, f"id {key!r} for the second time; {_MENDING}")
            ids[key] = number
            size += len(line)
    return ids, size


_MENDING = "delete the line and the same command writes it again"


def _row_id(line: bytes) -> str | None:
    """The id of a whole line, None for a torn or damaged one."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = parse_json(line.decode("utf-8"))
    except (UnicodeDecodeError, RowError):
        return None
    key = cast(Row, row).get("id") if isinstance(row, dict) else None
    return key if isinstance(key, str) else None


def refuse_differences(path: Path, found: dict[str, Any], meta: StepMeta) -> None:
    """Raises ConfigError with every option and input that is not that of the file at `path`."""
    before, now = _compared(found), _compared(asdict(meta))
    names = [name for name in before | now if before.get(name) != now.get(name)]
    if names:
        changes = ", ".join(f"{name}: was {before.get(name, 'unset')}, now {now.get(name, 'unset')}" for name in names)
        raise ConfigError(f"{path}: made with other options ({changes}); give another --out, or delete the file")


def _compared(meta: dict[str, Any]) -> dict[str, str]:
    """Everything that must stay the same: option -> its JSON, input -> the start of its digest."""
    inputs = {f"input {role}": f"sha256 {entry['sha256'][:16]}" for role, entry in meta["inputs"].items()}
    return {"step": meta["step"]} | dict(_flat(meta["config"], "")) | inputs


def _flat(config: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _flat(cast(dict[str, Any], value), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(value, ensure_ascii=False)


def meta_path(path: str | Path) -> Path:
    """`runs/judged.jsonl` -> `runs/judged.meta.json`."""
    return Path(path).with_suffix(".meta.json")


def read_meta(path: str | Path) -> dict[str, Any] | None:
    """The meta of the output at `path` (step, config, inputs, versions, done, rows, bytes, summary), None without."""
    return read_meta_at(meta_path(path), path)


def read_meta_at(source: Path, path: str | Path) -> dict[str, Any] | None:
    """The same for a meta that stands elsewhere."""
    if not source.exists():
        return None
    try:
        meta = json.loads(source.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{source}: damaged ({error}); delete it together with {path}") from None
    return cast(dict[str, Any], meta)


def read_rows(path: str | Path) -> Iterator[Row]:
    """The rows of an output, in order, one at a time."""
    with Path(path).open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            yield parse_row(line, path, number)


def parse_row(line: bytes, path: str | Path, number: int | None) -> Row:
    """The row on a line of the output at `path`; raises DataError with the number (from 1) for a damaged one."""
    try:
        return cast(Row, parse_json(line.decode("utf-8")))
    except (UnicodeDecodeError, RowError) as error:
        raise DataError.at(str(path), number, str(error)) from None


def json_line(row: Row) -> str:
    """One row as a line. Raises ValueError for NaN, which JSON does not have."""
    return JSON.encode(row) + "\n"


def write_json_atomic(path: str | Path, value: Any) -> None:
    """Replaces the file as a whole: a kill or a power cut leaves the old one or the new one. Raises OSError."""
    _replace_file(Path(path), [json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2) + "\n"])


def write_rows_atomic(path: str | Path, rows: Iterable[Row]) -> None:
    """Replaces the file as a whole by one line per row, `-` is standard output. Raises OSError."""
    lines = map(json_line, rows)
    if str(path) == "-":
        sys.stdout.writelines(lines)
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    _replace_file(Path(path), lines)


def _replace_file(path: Path, parts: Iterable[str]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def file_digest(path: str | Path) -> str:
    """SHA-256 of the file's bytes, in hexadecimal."""
    digest = sha256()
    with Path(path).open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def file_entry(path: str | Path) -> dict[str, str]:
    """An input file, for StepMeta.inputs."""
    return {"name": str(path), "sha256": file_digest(path)}


def ids_entry(name: str, ids: Iterable[str]) -> dict[str, str]:
    """An input without a file of its own (standard input), for StepMeta.inputs: the ids in their order."""
    return {"name": name, "sha256": sha256("\n".join(ids).encode("utf-8")).hexdigest()}


def new_folder(final: str | Path) -> Path:
    """An empty folder beside `final`, to be filled and given to `replace_folder`; clears what a kill left behind."""
    final = Path(final)
    temporary, replaced = _beside(final)
    if replaced.exists() and not final.exists():  # killed between the two renames of replace_folder
        replaced.rename(final)
    for leftover in (temporary, replaced):
        if leftover.exists():
            shutil.rmtree(leftover)
    temporary.mkdir(parents=True)
    return temporary


def replace_folder(temporary: str | Path, final: str | Path) -> None:
    """Makes the files durable and renames the folder to `final`; a folder already there goes when the new one is in."""
    temporary, final = Path(temporary), Path(final)
    for entry in [*temporary.rglob("*"), temporary]:
        sync(entry)
    replaced = _beside(final)[1]
    if final.exists():
        final.rename(replaced)
    temporary.rename(final)
    sync(final.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


def _beside(final: Path) -> tuple[Path, Path]:
    """Where a new folder is filled, and where the old one waits until the new one is in place."""
    return final.with_name(f"{final.name}.tmp"), final.with_name(f"{final.name}.old")


def sync(path: Path) -> None:
    """Makes a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, content: bytes) -> None:
    """Raises OSError; a part may then have been written."""
    rest = memoryview(content)
    while rest:  # one write, unless the disk or a pipe takes only a part
        rest = rest[os.write(descriptor, rest) :]


def _leave_closed_pipe(descriptor: int) -> NoReturn:
    """Ends the program quietly; what Python may still flush at its end goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    raise SystemExit(PIPE_CLOSED)


def without_nan(value: Any) -> Any:
    """A summary as JSON can hold it: NaN becomes null, tuples become lists."""
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in cast(dict[str, Any], value).items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in cast("list[Any]", value)]
    return None if isinstance(value, float) and math.isnan(value) else value
