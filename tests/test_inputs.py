"""Sources: rows that are read again and again, from files that may change and from a pipe."""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from models import make_prompts

from selfjudge.errors import DataError
from selfjudge.inputs import read_prompts, read_scorable, survey
from selfjudge.records import Example
from selfjudge.store import file_entry


def ids(examples: Iterator[Example] | object) -> list[str]:
    return [example.id for example in examples]  # type: ignore[attr-defined]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return make_prompts(tmp_path / "prompts.jsonl", 5)


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> io.BytesIO:
    stream = io.BytesIO(content)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=stream))
    return stream


def test_a_file_is_read_as_often_as_wanted(file: Path) -> None:
    with read_prompts(str(file)) as prompts:
        assert len(prompts) == 5
        assert prompts.entry == file_entry(file)
        assert ids(prompts) == ids(prompts) == ["p0", "p1", "p2", "p3", "p4"]
        assert [(a.id, b.id) for a, b in zip(prompts, prompts, strict=True)] == [(f"p{i}", f"p{i}") for i in range(5)]


def test_standard_input_is_read_as_often_as_wanted(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, file.read_bytes())
    with read_prompts("-") as prompts, read_prompts(str(file)) as same:
        assert len(prompts) == 5
        assert list(prompts) == list(same) == list(prompts)
        assert [(a.id, b.id) for a, b in zip(prompts, prompts, strict=True)] == [(f"p{i}", f"p{i}") for i in range(5)]


def test_standard_input_is_named_by_its_rows(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by its bytes: blank lines do not count. Other rows have another digest."""
    found: list[str] = []
    whole = file.read_bytes()
    for content in (whole, b"\n" + whole, whole.replace(b"p3", b"p9")):
        pipe(monkeypatch, content)
        with read_prompts("-") as prompts:
            found.append(prompts.entry["sha256"])
    assert found[0] == found[1] != found[2]


def test_a_limit_leaves_the_rest_of_the_pipe_alone(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    stream = pipe(monkeypatch, b"".join(lines))
    with read_prompts("-", limit=2) as prompts:
        assert (len(prompts), ids(prompts)) == (2, ["p0", "p1"])
    assert stream.read() == b"".join(lines[2:])


def test_a_bad_row_is_said_before_anything_is_computed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = file.read_bytes() + b'{"prompt": ""}\n' + b'{"prompt": "later"}\n'
    file.write_bytes(content)
    stream = pipe(monkeypatch, content)
    for name, shown in ((str(file), str(file)), ("-", "<stdin>")):
        with pytest.raises(DataError, match="row 6: the prompt is empty") as caught, read_prompts(name):
            pytest.fail("the source was opened")
        assert str(caught.value).startswith(f"{shown}, row 6")
    assert stream.read() == b'{"prompt": "later"}\n'


def test_no_room_for_what_a_pipe_sends(tmp_path: Path, child_env: dict[str, str]) -> None:
    """The limit on the size of a file stands for the disk."""

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    rows = "".join(f'{{"id": "{number}", "prompt": "one?"}}\n' for number in range(1000))
    command = [sys.executable, "-m", "selfjudge.cli", "sample", "--backend", "fake", "--model", "fake"]
    env = child_env | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, input=rows, env=env, capture_output=True, text=True, check=False, preexec_fn=small)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"selfjudge: <stdin>: cannot be kept in {tmp_path} (File too large); "
        "set TMPDIR to a folder with more room, or give a file"
    ]
    assert list(tmp_path.iterdir()) == []


def test_lines_longer_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines end anywhere in a block of 7 bytes, the last one without a line end."""
    monkeypatch.setattr("selfjudge.inputs.BLOCK", 7)
    rows = [f'{{"id": "{"x" * length}", "prompt": "one?"}}' for length in range(1, 30)]
    pipe(monkeypatch, "\n".join(rows).encode())
    with read_prompts("-") as prompts:
        assert ids(prompts) == ids(prompts) == ["x" * length for length in range(1, 30)]


def test_prompts_come_without_answers(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"id": "1", "prompt": "one?", "chosen": "1", "rejected": "2", "reference": "1"}\n')
    with read_prompts(str(file)) as prompts, read_scorable(str(file), ("gold",)) as pairs:
        assert [(len(e.responses), e.gold, e.reference) for e in prompts] == [(0, None, "1")]
        assert [(len(e.responses), e.gold, e.reference) for e in pairs] == [(2, (0,), "1")]


@pytest.mark.parametrize("name", ["lab", "lab-dev"])
def test_the_world_has_a_digest_of_its_rows(name: str) -> None:
    with read_prompts(name) as prompts, read_prompts(name, limit=3) as first:
        assert ids(first) == ids(prompts)[:3]
        assert prompts.entry["sha256"] == survey(name, lambda: iter(prompts)).entry["sha256"]
        assert prompts.entry != first.entry


# Files that change


def test_a_file_that_changes_between_two_passes_is_refused(file: Path) -> None:
    with read_prompts(str(file)) as prompts:
        assert len(ids(prompts)) == 5
        make_prompts(file, 6)
        with pytest.raises(DataError, match=r"prompts\.jsonl: changed while it was being read; run the command again"):
            ids(prompts)


def test_a_file_that_changes_during_a_pass_is_refused(file: Path) -> None:
    """The size stays the same, and the change lies before where the pass stands."""
    with read_prompts(str(file)) as prompts:
        passing = iter(prompts)
        next(passing)
        file.write_bytes(file.read_bytes().replace(b"p0", b"q0"))
        os.utime(file, ns=(0, 0))
        with pytest.raises(DataError, match="changed while it was being read"):
            list(passing)


def test_a_file_that_is_removed_is_refused(file: Path) -> None:
    with read_prompts(str(file)) as prompts:
        file.unlink()
        with pytest.raises(DataError, match="changed while it was being read"):
            ids(prompts)


def test_a_file_may_be_touched_or_copied_into_its_place(file: Path) -> None:
    with read_prompts(str(file)) as prompts:
        os.utime(file, ns=(0, 0))
        assert len(ids(prompts)) == 5
        copy = file.with_suffix(".copy")
        copy.write_bytes(file.read_bytes())
        copy.replace(file)
        assert len(ids(prompts)) == 5


# Parts


def test_parts_are_named_by_their_rows(file: Path) -> None:
    with read_prompts(str(file)) as prompts:
        odd = prompts.part(lambda prompt: prompt.id in ("p1", "p3"))
        same = prompts.part(lambda prompt: prompt.id[1] in "13")
        other = prompts.part(lambda prompt: prompt.id in ("p1", "p4"))
        assert (len(odd), ids(odd), ids(odd)) == (2, ["p1", "p3"], ["p1", "p3"])
        assert odd.entry == same.entry
        assert odd.entry["sha256"] != other.entry["sha256"]
        assert not len(prompts.part(lambda _: False))
