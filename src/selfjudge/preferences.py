"""What training reads: prompts with their ranked responses as token ids, kept on disk.

    with on_disk(Path("runs/mine")) as preferences:
        preferences.append(Preference("1", (5, 6), ((7, 1), (8, 1)), (2.0, -2.0), (-3.5, -4.0)))
        preferences[0].tree

In memory are 8 bytes a prompt, where its record begins. The file has no name, so that not even a kill leaves it behind.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeVar

from torch.utils.data import Dataset

from selfjudge.errors import StepError
from selfjudge.rows import Tree
from selfjudge.store import write_all


@dataclass(frozen=True)
class Preference:
    """One prompt with its responses, best first: the unit of training.

    `strengths` and `ref_logps` have one entry per response: log-strengths in nats, and log-probabilities of the whole
    response (end token included) under the reference, NaN as long as they are not known.
    """

    id: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[tuple[int, ...], ...]
    strengths: tuple[float, ...]
    ref_logps: tuple[float, ...]

    @property
    def tree(self) -> Tree:
        """The prompt once, its responses behind it."""
        return Tree(self.prompt_ids, self.response_ids)

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest response."""
        return len(self.prompt_ids) + max(len(ids) for ids in self.response_ids)


class RecordFile:
    """Records by their index, as JSON; made by `on_disk`."""

    def __init__(self, descriptor: int, folder: Path) -> None:
        self._descriptor = descriptor
        self._folder = folder
        self._ends = array("Q", [0])

    def write(self, values: Sequence[Any]) -> None:
        """Raises StepError when the disk refuses."""
        record = json.dumps(values).encode()  # NaN stays NaN
        try:
            write_all(self._descriptor, record)
        except OSError as error:
            problem = f"the pairs' tokens cannot be written ({error.strerror}); make room there, or give another --out"
            raise StepError(f"{self._folder}: {problem}") from error
        self._ends.append(self._ends[-1] + len(record))

    def read(self, index: int) -> list[Any]:
        start, end = self._ends[index], self._ends[index + 1]
        return json.loads(os.pread(self._descriptor, end - start, start))

    def __len__(self) -> int:
        return len(self._ends) - 1


class PreferenceFile(RecordFile, Dataset[Preference]):
    """Preferences by their index."""

    def append(self, preference: Preference) -> None:
        """Raises StepError when the disk refuses."""
        tokens = (preference.id, preference.prompt_ids, preference.response_ids)
        self.write((*tokens, preference.strengths, preference.ref_logps))

    def __getitem__(self, index: int) -> Preference:
        key, prompt, responses, *numbers = self.read(index)
        return Preference(key, tuple(prompt), tuple(map(tuple, responses)), *map(tuple, numbers))

    def __iter__(self) -> Iterator[Preference]:
        return (self[index] for index in range(len(self)))


Kind = TypeVar("Kind", bound=RecordFile)


@contextmanager
def on_disk(folder: Path, kind: type[Kind] = PreferenceFile) -> Generator[Kind]:
    """An empty file, on the disk of `folder`; gone afterwards."""
    with TemporaryFile(dir=folder) as file:
        yield kind(file.fileno(), folder)
