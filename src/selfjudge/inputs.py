"""What a command reads: a user's file, a pipe, or the built-in world by its name.

    with read_prompts("prompts.jsonl") as prompts:
        print(len(prompts), prompts.entry)
        for example in prompts:  # reads the file anew, as often as wanted
            ...

Opening goes through all rows once, so that whatever is wrong with one is said before anything is computed. From then on
one row at a time is in memory. What comes through a pipe is kept in a temporary file meanwhile (in TMPDIR, or /tmp).
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile, gettempdir

from selfjudge import lab
from selfjudge.errors import DataError, StepError
from selfjudge.readers import examples_of, read_examples, read_jsonl
from selfjudge.records import Example
from selfjudge.store import BLOCK, file_digest, file_entry, json_line, read_meta, write_all

WORLD = ("lab", "lab-dev")
"""`lab`: the world's training prompts and its test questions; `lab-dev`: questions to choose settings on."""
STDIN = "<stdin>"

Entry = dict[str, str]
Read = Callable[[], Iterator[Example]]
"""Reads all rows, from the first one on."""


@dataclass(frozen=True)
class Source:
    """Examples that are read anew whenever they are iterated over."""

    entry: Entry
    """What a step's meta records of its input: the file's digest, or that of the rows where there is no file."""
    count: int
    read: Read

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Example]:
        return self.read()

    def part(self, keep: Callable[[Example], bool]) -> Source:
        """The examples for which `keep` is true."""
        return survey(self.entry["name"], lambda: filter(keep, self.read()))


def survey(name: str, read: Read) -> Source:
    """Counts and digests what `read` reads."""
    digest, count = hashlib.sha256(), 0
    for example in read():
        digest.update(json_line(example.to_json()).encode())
        count += 1
    return Source({"name": name, "sha256": digest.hexdigest()}, count, read)


@contextmanager
def read_prompts(name: str, limit: int = 0) -> Generator[Source]:
    """Prompts to sample from, without responses. Raises DataError, also for a source without any row."""
    if name in WORLD:
        yield _of_world(name, lab.prompts("train" if name == "lab" else "dev"), limit)
        return
    with _opened(name, (), limit) as source:
        yield replace(source, read=lambda: map(_prompt_only, source.read()))


@contextmanager
def read_scorable(name: str, need: Collection[str], limit: int = 0) -> Generator[Source]:
    """Rows that have at least the fields in `need`: for judging, selecting, training or evaluating."""
    if name in WORLD:
        yield _of_world(name, lab.benchmark("test" if name == "lab" else "dev"), limit)
        return
    refuse_unfinished(name)
    with _opened(name, need, limit) as source:
        yield source


def _prompt_only(example: Example) -> Example:
    """Answers that the file may hold are not the model's own."""
    return Example(example.id, example.messages, example.category, reference=example.reference, tags=example.tags)


def refuse_unfinished(name: str) -> None:
    """An interrupted step's output is not an input: the next step would take a part for the whole."""
    meta = read_meta(name) if name != "-" else None
    if meta is not None and not meta["done"]:
        raise DataError.at(name, None, f"its `{meta['step']}` step is not finished; run that command again first")


def _of_world(name: str, examples: list[Example], limit: int) -> Source:
    return survey(name, lambda: islice(examples, limit or None))


@contextmanager
def _opened(name: str, need: Collection[str], limit: int) -> Generator[Source]:
    """The first `limit` rows (0: all) of a file or of standard input."""

    def first(examples: Iterator[Example]) -> Iterator[Example]:
        return islice(examples, limit or None)

    if name != "-":
        yield _of_file(Path(name), lambda: first(read_examples(name, need)))
        return
    with TemporaryFile(buffering=0) as copy:
        copied = _copied(sys.stdin.buffer, copy.fileno())
        found = survey(name, lambda: first(examples_of(STDIN, read_jsonl(copied, STDIN), need)))
        yield replace(found, read=lambda: first(examples_of(STDIN, read_jsonl(_lines(copy.fileno()), STDIN), need)))


# Files


def _of_file(path: Path, read: Read) -> Source:
    rows = read()  # says what is wrong with the path
    stamp = _stamp(path)
    count = sum(1 for _ in rows)
    entry = file_entry(path)

    def check(same: bool) -> None:
        if not same:
            raise DataError.at(str(path), None, "changed while it was being read; run the command again")

    def read_unchanged() -> Iterator[Example]:
        check(_is_same(path, stamp, entry["sha256"]))
        yield from read()
        check(_is_same(path, stamp, entry["sha256"]))

    check(_stamp(path) == stamp)
    return Source(entry, count, read_unchanged)


def _is_same(path: Path, stamp: tuple[int, int, int], digest: str) -> bool:
    """A file that was only touched or copied has the same content still."""
    try:
        return _stamp(path) == stamp or file_digest(path) == digest
    except OSError:  # it is gone
        return False


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


# Standard input


def _copied(stream: Iterable[bytes], copy: int) -> Iterator[bytes]:
    """The lines, each of them once it is written to the descriptor `copy`."""
    for line in stream:
        try:
            write_all(copy, line)
        except OSError as error:
            problem = f"cannot be kept in {gettempdir()} ({error.strerror})"
            raise StepError(f"{STDIN}: {problem}; set TMPDIR to a folder with more room, or give a file") from error
        yield line


def _lines(descriptor: int) -> Iterator[bytes]:
    """From the first line on, wherever another pass over the same file stands."""
    position, rest = 0, b""
    while block := os.pread(descriptor, BLOCK, position):
        position += len(block)
        *lines, rest = (rest + block).split(b"\n")
        yield from (line + b"\n" for line in lines)
    if rest:
        yield rest
