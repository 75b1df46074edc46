import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import pytest

from selfjudge import store
from selfjudge.errors import ConfigError, DataError, StepError
from selfjudge.store import StepMeta, open_output

META = StepMeta("judge", {"beta": 0.1, "loss": {"name": "dpo"}}, {"data": {"name": "a.jsonl", "sha256": "0" * 64}})
ROWS = [{"id": f"r{index}", "text": "ü" * (index % 7) + '"\n\u2028', "score": index / 3} for index in range(40)]
LINES = [store.json_line(row).encode("utf-8") for row in ROWS]


def run_step(path, rows=ROWS, meta=META, finish=True):
    """A step as the steps are written: skips what is there, appends the rest two by two."""
    with open_output(path, meta) as output:
        if not output.finished:
            left = [row for row in rows if row["id"] not in output.done_ids]
            for start in range(0, len(left), 2):
                output.append(left[start : start + 2])
            if finish:
                output.finish({"rows": len(output.done_ids)})
    return output


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


def test_straight_run(tmp_path):
    path = tmp_path / "new" / "judged.jsonl"
    output = run_step(path)
    assert path.read_bytes() == b"".join(LINES)
    assert list(store.read_rows(path)) == ROWS
    assert output.finished
    meta = json.loads((tmp_path / "new" / "judged.meta.json").read_text())
    assert meta == {
        "step": "judge",
        "config": META.config,
        "inputs": META.inputs,
        "versions": {},
        "done": True,
        "rows": 40,
        "bytes": path.stat().st_size,
        "summary": {"rows": 40},
    }
    assert store.read_meta(path) == meta
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["judged.jsonl", "judged.meta.json"]


def test_meta_comes_first_and_last(tmp_path):
    path = tmp_path / "a.jsonl"
    with open_output(path, META) as output:
        assert store.read_meta(path)["done"] is False
        output.append(ROWS)
        assert store.read_meta(path)["done"] is False
        assert path.read_bytes() == b"".join(LINES)  # safe before anything is closed
        output.finish({})
        assert store.read_meta(path)["done"] is True


def test_a_finished_step_is_left_alone(tmp_path):
    path = tmp_path / "a.jsonl"
    run_step(path)
    before = path.stat().st_mtime_ns, store.meta_path(path).stat().st_mtime_ns
    with open_output(path, META) as output:
        assert output.finished
        assert output.summary == {"rows": 40}
        with pytest.raises(StepError, match="the step is finished"):
            output.append([{"id": "more"}])
    assert (path.stat().st_mtime_ns, store.meta_path(path).stat().st_mtime_ns) == before


def test_a_finished_step_without_rows_is_finished(tmp_path):
    run_step(tmp_path / "a.jsonl", rows=[])
    with open_output(tmp_path / "a.jsonl", META) as output:
        assert output.finished
    with (
        pytest.raises(ConfigError, match="step: was judge, now sample"),
        open_output(tmp_path / "a.jsonl", StepMeta("sample", META.config, META.inputs)),
    ):
        pass


@pytest.mark.parametrize("done", [False, True])
def test_any_cut_resumes_right(tmp_path, monkeypatch, done):
    """Every byte position, of an unfinished file and of a finished one that was shortened afterwards."""
    monkeypatch.setattr(os, "fsync", lambda *_: None)  # thousands of them, slow on a busy disk
    path = tmp_path / "a.jsonl"
    rows, whole = ROWS[:6], b"".join(LINES[:6])
    for cut in range(len(whole)):
        run_step(path, rows=rows, finish=done)
        os.truncate(path, cut)
        with open_output(path, META) as output:
            assert not output.finished
            assert len(output.done_ids) == whole[:cut].count(b"}\n")
            assert path.read_bytes() == b"".join(LINES[: len(output.done_ids)])
        run_step(path, rows=rows)
        assert path.read_bytes() == whole
        path.unlink()


@pytest.mark.parametrize("tail", [b"\0" * 40, b"\0\n", b'{"id": "r9"', b'{"id": 5}\n', b'{"x": 1}\n', b"\xff\n", b"\n"])
def test_damaged_last_line_is_cut_off(tmp_path, tail):
    path = tmp_path / "a.jsonl"
    run_step(path, rows=ROWS[:3], finish=False)
    path.write_bytes(path.read_bytes() + tail)
    run_step(path)
    assert path.read_bytes() == b"".join(LINES)


def test_damage_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "a.jsonl"
    run_step(path, rows=ROWS[:3], finish=False)
    path.write_bytes(LINES[0] + b'{"id": "r1"\n' + LINES[2])
    with pytest.raises(DataError) as error:
        run_step(path)
    assert one_line(error).startswith(f"{path}, row 2: broken line in the middle of the file; delete the line")
    path.write_bytes(LINES[0] + LINES[1] + LINES[0])
    with pytest.raises(DataError, match="row 3: id 'r0' for the second time"):
        run_step(path)


def test_doubled_ids_are_refused(tmp_path):
    with open_output(tmp_path / "a.jsonl", META) as output:
        output.append(ROWS[:2])
        for rows in ([ROWS[1]], [ROWS[3], ROWS[3]]):
            with pytest.raises(StepError, match=f"id '{rows[0]['id']}' has already been written"):
                output.append(rows)
        assert [f"r{index}" in output.done_ids for index in range(4)] == [True, True, False, False]
        assert len(output.done_ids) == 2
    assert (tmp_path / "a.jsonl").read_bytes() == b"".join(LINES[:2])


def test_nan_is_no_number_of_a_row(tmp_path):
    with open_output(tmp_path / "a.jsonl", META) as output:
        with pytest.raises(ValueError, match="not JSON compliant"):
            output.append([ROWS[0], {"id": "x", "score": float("nan")}])
        output.append(ROWS[:1])
        output.finish({"mean": float("nan"), "each": [{"a": float("nan")}, 1.5]})
    assert store.read_meta(tmp_path / "a.jsonl")["summary"] == {"mean": None, "each": [{"a": None}, 1.5]}


# --- what is refused


@pytest.mark.parametrize("done", [False, True])
def test_other_options_are_refused_with_each_difference(tmp_path, done):
    path = tmp_path / "a.jsonl"
    run_step(path, rows=ROWS[:4], finish=done)
    inputs = {"data": {"name": "b.jsonl", "sha256": "1" * 64}}
    other = StepMeta("judge", {"beta": 0.5, "loss": {"name": "azar"}, "tau": None}, inputs)
    with pytest.raises(ConfigError) as error:
        run_step(path, meta=other)
    assert one_line(error) == (
        f'{path}: made with other options (beta: was 0.1, now 0.5, loss.name: was "dpo", now "azar", '
        f"input data: was sha256 {'0' * 16}, now sha256 {'1' * 16}, tau: was unset, now null); "
        "give another --out, or delete the file"
    )
    assert path.read_bytes() == b"".join(LINES[:4])
    path.unlink()  # the advice works
    run_step(path, meta=other)
    assert path.read_bytes() == b"".join(LINES)


def test_what_does_not_change_rows_may_change(tmp_path):
    path = tmp_path / "a.jsonl"
    before = StepMeta("judge", {"seeds": (1, 2)}, {"data": {"name": "a", "sha256": "0" * 64}}, {"torch": "1"})
    now = StepMeta("judge", {"seeds": [1, 2]}, {"data": {"name": "moved", "sha256": "0" * 64}}, {"torch": "2"})
    run_step(path, rows=ROWS[:3], meta=before, finish=False)
    run_step(path, meta=now)
    assert path.read_bytes() == b"".join(LINES)
    assert store.read_meta(path)["versions"] == {"torch": "2"}


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"id": "r0"}\n')
    with pytest.raises(ConfigError) as error:
        run_step(path)
    assert one_line(error) == (
        f"{path}: exists, but mine.meta.json does not: not an output of selfjudge; "
        "give another --out, or delete the file"
    )
    assert path.read_text() == '{"id": "r0"}\n'
    (tmp_path / "mine.meta.json").write_text("{")
    with pytest.raises(ConfigError, match=r"mine\.meta\.json: damaged"):
        run_step(path)
    with pytest.raises(ConfigError, match=r"the name must end in \.jsonl"):
        run_step(tmp_path / "mine.json")


def test_two_writers_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    with open_output(path, META) as output:
        output.append(ROWS[:2])
        with pytest.raises(StepError) as error:
            run_step(path)
        assert one_line(error) == f"{path}: another process is writing it; wait for that, or give another --out"
        output.append(ROWS[2:4])
    run_step(path)
    assert path.read_bytes() == b"".join(LINES)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StepError, match=r"cannot be written \(File exists: .*/file\); give another --out"):
        run_step(tmp_path / "file" / "a.jsonl")


# --- the disk is full


def test_full_disk(tmp_path, child_env):
    """A limit on file sizes tears the write in the middle of a row; without the limit the same command goes on."""
    path = tmp_path / "a.jsonl"
    limit = len(b"".join(LINES[:20])) + 7
    code = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_store import run_step
from selfjudge.errors import StepError
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    run_step({str(path)!r})
except StepError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=child_env)
    assert done.stdout == (
        f"{path}: cannot be written (File too large); 20 rows are safe; the same command goes on from there\n"
    )
    assert path.read_bytes() == b"".join(LINES[:20])
    run_step(path)
    assert path.read_bytes() == b"".join(LINES)


def test_full_disk_when_not_even_cutting_works(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    real_write, real_truncate = os.write, os.ftruncate

    def half_write(descriptor, content):
        if len(content) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(descriptor, content[: len(content) // 2])

    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    with open_output(path, META) as output:
        output.append(ROWS[:4])
        monkeypatch.setattr(os, "write", half_write)
        monkeypatch.setattr(os, "ftruncate", refuse)
        with pytest.raises(StepError, match=r"No space left on device\); 4 rows are safe"):
            output.append(ROWS[4:6])
    assert path.stat().st_size > len(b"".join(LINES[:4]))
    monkeypatch.setattr(os, "write", real_write)
    monkeypatch.setattr(os, "ftruncate", real_truncate)
    run_step(path)
    assert path.read_bytes() == b"".join(LINES)


def test_full_disk_at_the_end(tmp_path, monkeypatch):
    """The last meta cannot be written: the step stays unfinished, and the old meta stays whole."""
    path = tmp_path / "a.jsonl"

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with open_output(path, META) as output:
        output.append(ROWS)
        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(StepError, match="40 rows are safe; the same command goes on"):
            output.finish({})
        assert not output.finished
        with pytest.raises(OSError, match="No space"):
            store.write_json_atomic(store.meta_path(path), {})
        monkeypatch.undo()
    assert store.read_meta(path)["done"] is False
    assert run_step(path).finished
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.jsonl", "a.meta.json"]


# --- kill -9

STEP = """
import sys, time
from selfjudge.store import StepMeta, open_output
with open_output(sys.argv[1], StepMeta("judge", {})) as output:
    print("open", flush=True)
    left = [index for index in range(6000) if f"r{index}" not in output.done_ids]
    for start in range(0, len(left), 5):
        output.append([{"id": f"r{index}", "text": "x" * (index % 997)} for index in left[start : start + 5]])
        time.sleep(0.0005)
    if not output.finished:
        output.finish({"rows": len(output.done_ids)})
"""


def test_kill_and_resume(tmp_path, child_env):
    """Ten kills while rows are written, ten at any moment since the start of the process."""
    command = [sys.executable, "-c", STEP]
    straight, killed = tmp_path / "straight.jsonl", tmp_path / "killed.jsonl"
    subprocess.run([*command, straight], check=True, capture_output=True, env=child_env)
    moments = random.Random(0)
    sizes = {0}
    for attempt in range(20):
        child = subprocess.Popen([*command, killed], stdout=subprocess.PIPE, env=child_env)
        if attempt % 2 == 0:
            child.stdout.readline()
        time.sleep(moments.uniform(0, 0.03 if attempt % 2 == 0 else 0.1))
        child.kill()
        child.communicate()
        assert child.returncode == -signal.SIGKILL
        sizes.add(killed.stat().st_size)
        assert store.read_meta(killed)["done"] is False
    assert len(sizes) > 5  # the kills did fall between the rows
    subprocess.run([*command, killed], check=True, capture_output=True, env=child_env)
    assert killed.read_bytes() == straight.read_bytes()
    assert store.read_meta(killed) == store.read_meta(straight)


# --- standard output


def stdout_step(child_env, **options):
    code = """
from selfjudge.store import StepMeta, open_output
with open_output("-", StepMeta("judge", {})) as output:
    for index in range(50_000):
        output.append([{"id": str(index)}])
    output.finish({})
"""
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, env=child_env, **options)


def test_standard_output(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_output("-", META) as output:
        print("before")
        output.append(ROWS[:2])
        with pytest.raises(StepError, match="standard output: a row with the id 'r0'"):
            output.append(ROWS[:1])
        output.finish({"rows": 2})
    assert capfd.readouterr().out.encode() == b"before\n" + LINES[0] + LINES[1]
    assert list(tmp_path.iterdir()) == []


def test_head_closes_the_pipe(child_env):
    child = stdout_step(child_env, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b'{"id":"0"}\n'
    child.stdout.close()
    assert child.stderr.read() == b""
    child.stderr.close()
    assert child.wait() == store.PIPE_CLOSED


def test_full_standard_output(child_env):
    with open("/dev/full", "wb") as full:
        child = stdout_step(child_env, stdout=full)
        last = child.communicate()[1].decode().splitlines()[-1]
    assert last.endswith("standard output: cannot be written (No space left on device); 0 rows are safe")


# --- digests and folders


def test_digests(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert store.file_entry(tmp_path / "a") == {"name": str(tmp_path / "a"), "sha256": expected}
    assert store.ids_entry("<stdin>", ["abc"])["sha256"] == expected
    assert store.ids_entry("x", ["a", "b"]) != store.ids_entry("x", ["b", "a"])


def test_rows_are_read_one_at_a_time(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES[0] + b"{\n")
    rows = store.read_rows(path)
    assert next(rows) == ROWS[0]
    with pytest.raises(DataError, match=r"a\.jsonl, row 2: malformed JSON"):
        deque(rows)


def fill(folder, text):
    (folder / "part").mkdir()
    (folder / "part" / "weights").write_text(text)


@pytest.mark.parametrize("present", [False, True])
def test_folder_is_replaced(tmp_path, present):
    final = tmp_path / "models" / "model"
    for text in ["old", "new"] if present else ["new"]:
        temporary = store.new_folder(final)
        fill(temporary, text)
        store.replace_folder(temporary, final)
    assert (final / "part" / "weights").read_text() == "new"
    assert [entry.name for entry in final.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_folder_after_a_kill(tmp_path, monkeypatch, renames):
    """Killed after so many renames, the next start finds a whole folder, the old one or the new one."""
    final = tmp_path / "model"
    fill(first := store.new_folder(final), "old")
    store.replace_folder(first, final)
    fill(second := store.new_folder(final), "new")
    calls = iter(range(renames))
    real = Path.rename

    def rename(self, target):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return real(self, target)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(store.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        store.replace_folder(second, final)
    monkeypatch.undo()
    assert list(store.new_folder(final).iterdir()) == []
    assert (final / "part" / "weights").read_text() == ("new" if renames == 2 else "old")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model", "model.tmp"]
