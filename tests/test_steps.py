"""Steps in files and pipes, on the backend without a model; summaries are counted by hand from the rows."""

from __future__ import annotations

import gzip
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from commands import done, summary
from models import make_model, make_prompts

from selfjudge.cli import main
from selfjudge.records import Example, Message
from selfjudge.steps.sample import ReadAhead
from selfjudge.store import read_rows

FAKE = ["--backend", "fake", "--model", "fake", "--quiet"]
PROGRAM = [sys.executable, "-W", "error", "-m", "selfjudge.cli"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return make_prompts(tmp_path / "prompts.jsonl", 20)


def steps_in_files(prompts: Path, folder: Path) -> tuple[Path, Path, Path]:
    samples, scored, selected = (folder / f"{name}.jsonl" for name in ("samples", "scored", "selected"))
    done("sample", *FAKE, "--prompts", prompts, "--out", samples)
    done("judge", *FAKE, "--input", samples, "--out", scored)
    done("select", "--quiet", "--input", scored, "--out", selected)
    return samples, scored, selected


# Files


def test_the_summary_of_samples(prompts: Path, tmp_path: Path) -> None:
    samples, _, _ = steps_in_files(prompts, tmp_path)
    rows = list(read_rows(samples))
    responses = [response for row in rows for response in row["responses"]]
    unfinished = [response for response in responses if "finished" in response]
    assert 0 < len(unfinished) < 20
    distinct = sum(len({response["text"] for response in row["responses"]}) for row in rows)
    assert 20 < distinct < 80
    assert summary(samples) == {
        "prompts": 20,
        "responses": 80,
        "mean_tokens": 9.0,  # "answer 5" is 8 bytes, and an end token
        "unfinished_share": len(unfinished) / 80,
        "distinct_share": distinct / 80,
    }


def test_the_summary_of_scores(prompts: Path, tmp_path: Path) -> None:
    _, scored, _ = steps_in_files(prompts, tmp_path)
    rows = list(read_rows(scored))
    log_odds = [[score["value"] for score in row["scores"]] for row in rows]
    masses = [score["label_mass"] for row in rows for score in row["scores"]]
    found = summary(scored)
    assert {name: found[name] for name in ("prompts", "responses", "missing", "truncated")} == {
        "prompts": 20,
        "responses": 80,
        "missing": 0,
        "truncated": 0,
    }
    assert found["mean_score"] == pytest.approx(math.fsum(x for row in log_odds for x in row) / 80)
    assert found["mean_margin"] == pytest.approx(math.fsum(max(row) - min(row) for row in log_odds) / 20)
    assert found["mean_label_mass"] == pytest.approx(sum(masses) / 80) == pytest.approx(0.8)  # see FakeBackend


def test_the_summary_of_a_selection(prompts: Path, tmp_path: Path) -> None:
    _, scored, selected = steps_in_files(prompts, tmp_path)
    margins: list[float] = []
    for row in read_rows(scored):
        usable = [
            score["value"]
            for response, score in zip(row["responses"], row["scores"], strict=True)
            if response.get("finished", True)
        ]
        margins += [max(usable) - min(usable)] if len(set(usable)) > 1 else []
    found = summary(selected)
    assert (found["prompts"], found["pairs"]) == (len(margins), len(margins))
    assert found["prompts"] + sum(found["dropped"].values()) == 20
    assert found["mean_margin"] == pytest.approx(sum(margins) / len(margins))
    for row in read_rows(selected):
        assert row["strengths"][0] > row["strengths"][1]
        assert sum(row["strengths"]) == pytest.approx(0)


def test_agreement_by_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scores 1, 2 and 2.5: by number two answers agree, and 2 + 2 log 2 = 3.39 is best. By letters nothing repeats."""
    scores = [{"value": value} for value in (1.0, 2.0, 2.5)]
    rows = [
        {"id": f"{n}", "prompt": f"{n}?", "responses": [f"so {n}.", f"or {n}", "0"], "scores": scores} for n in "35"
    ]
    mine = tmp_path / "mine.jsonl"
    mine.write_text("".join(json.dumps(row) + "\n" for row in rows))
    best: dict[str, list[str]] = {}
    for key in ("exact", "final-number"):
        out = tmp_path / f"{key}.jsonl"
        done("select", "--input", mine, "--out", out, "--agreement", 2, "--agreement-key", key)
        best[key] = [row["responses"][0]["text"] for row in read_rows(out)]
        said = "--agreement changed nothing: with --agreement-key exact no prompt has the same answer twice"
        assert (said in capsys.readouterr().err) is (key == "exact")
        assert summary(out)["repeated_share"] == (0 if key == "exact" else 1)
    assert best == {"exact": ["0", "0"], "final-number": ["or 3", "or 5"]}


def test_the_oracle_and_accuracy_by_hand(tmp_path: Path) -> None:
    """Two prompts with a right and a wrong answer, one with a tie of two wrong ones."""
    rows = [
        {"id": "a", "prompt": "1 + 1?", "chosen": "2", "rejected": "3", "reference": "2"},
        {"id": "b", "prompt": "1 + 2?", "chosen": "3", "rejected": "2", "reference": "3"},
        {"id": "c", "prompt": "1 + 3?", "chosen": "5", "rejected": "6", "reference": "4"},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "scored.jsonl"
    done("judge", "--judge", "oracle", "--quiet", "--input", tmp_path / "pairs.jsonl", "--out", out)
    found = summary(out)
    assert [[score["value"] for score in row["scores"]] for row in read_rows(out)] == [[5, -5], [5, -5], [-5, -5]]
    assert found["mean_score"] == pytest.approx(-5 / 3)
    assert found["mean_margin"] == pytest.approx(20 / 3)
    assert found["mean_label_mass"] is None
    assert found["judge_accuracy"]["value"] == pytest.approx(2.5 / 3)  # a tie is half right
    assert found["judge_strict"] == pytest.approx(2 / 3)  # and lost where it must be strictly right
    assert (found["pairs"], found["ties"]) == (3, 1)


def test_an_interrupted_step_ends_as_a_straight_one(prompts: Path, tmp_path: Path) -> None:
    """Half of the rows and a torn line are left; the meta says that it is not done."""
    samples, scored, _ = steps_in_files(prompts, tmp_path)
    for file in (samples, scored):
        whole = file.read_bytes()
        lines = whole.splitlines(keepends=True)
        file.write_bytes(b"".join(lines[:7]) + lines[7][:30])
        meta = file.with_suffix(".meta.json")
        meta.write_text(json.dumps(json.loads(meta.read_text()) | {"done": False}))
        command = ["sample", "--prompts", prompts] if file == samples else ["judge", "--input", samples]
        done(*command, *FAKE, "--out", file)
        assert file.read_bytes() == whole
        assert summary(file)["prompts"] == 20


def test_summaries_do_not_depend_on_where_a_step_was_stopped(prompts: Path, tmp_path: Path) -> None:
    """Rows of earlier starts are counted from the file, the others as they are made."""
    steps_in_files(prompts, tmp_path)
    files = {name: tmp_path / f"{name}.jsonl" for name in ("samples", "scored", "selected", "evaluation")}
    commands = {
        "samples": ["sample", *FAKE, "--prompts", prompts],
        "scored": ["judge", *FAKE, "--input", files["samples"]],
        "selected": ["select", "--quiet", "--input", files["scored"]],
        "evaluation": ["evaluate", *FAKE, "--benchmark", prompts],
    }
    done(*commands["evaluation"], "--out", files["evaluation"])
    for name, file in files.items():
        straight, whole = summary(file), file.read_bytes()
        file.write_bytes(b"".join(whole.splitlines(keepends=True)[:7]))
        done(*commands[name], "--out", file)
        assert summary(file) == straight
        assert file.read_bytes() == whole


def test_results_in_another_order_find_their_prompts() -> None:
    """Held are only the prompts that were read and not asked for yet."""
    read: list[str] = []

    def prompts() -> Iterator[Example]:
        for number in range(1000):
            read.append(f"p{number}")
            yield Example(f"p{number}", (Message("user", "?"),))

    waiting = ReadAhead(prompts())
    for start in range(0, 1000, 4):
        for number in (start + 2, start, start + 3, start + 1):
            assert waiting.take(f"p{number}").id == f"p{number}"
        assert len(read) == start + 4
        assert not waiting._waiting


# Judged in place


def test_sampling_in_place_scores_as_the_judge_does(prompts: Path, tmp_path: Path) -> None:
    """On a backend whose figures depend on the text alone the two ways are the same, agreement included."""
    samples, at_once, later = (tmp_path / f"{name}.jsonl" for name in ("samples", "at-once", "later"))
    done("sample", *FAKE, "--prompts", prompts, "--out", samples)
    done("sample", *FAKE, "--prompts", prompts, "--in-place", "--out", at_once)
    done("judge", *FAKE, "--input", samples, "--in-place", "--out", later)
    assert list(read_rows(at_once)) == list(read_rows(later))
    assert summary(at_once)["agreement"] == summary(later)["agreement"]
    assert {name: 0 for name in summary(at_once) if name not in summary(samples)} == {"agreement": 0}
    done("select", "--quiet", "--input", at_once, "--out", tmp_path / "selected.jsonl")
    assert summary(tmp_path / "selected.jsonl")["prompts"] > 10


def test_agreement_with_the_separate_question(prompts: Path, tmp_path: Path) -> None:
    """Of the first 5 prompts; one without distinct responses would not count."""
    samples, scored, separate = (tmp_path / f"{name}.jsonl" for name in ("samples", "scored", "separate"))
    done("sample", *FAKE, "--prompts", prompts, "--in-place", "--compare-separate", 5, "--out", samples)
    done("sample", *FAKE, "--prompts", prompts, "--in-place", "--compare-separate", 0, "--out", scored)
    assert samples.read_bytes() == scored.read_bytes()
    assert "agreement" not in summary(scored)
    done("judge", *FAKE, "--input", samples, "--limit", 5, "--out", separate)
    best = [
        [
            max(zip(row["scores"], row["responses"], strict=True), key=lambda pair: pair[0]["value"])[1]["text"]
            for row in list(read_rows(file))[:5]
        ]
        for file in (samples, separate)
    ]
    found = summary(samples)["agreement"]
    assert found["same_best"]["n"] == found["best_right_separate"]["n"] == 5
    assert found["same_best"]["value"] == sum(a == b for a, b in zip(*best, strict=True)) / 5
    assert -1 <= found["kendall_tau"]["value"] < 1


def test_a_model_whose_cache_cannot_be_continued_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = make_prompts(tmp_path / "prompts.jsonl", 2)
    command = ["sample", "--prompts", str(prompts), "--in-place", "--max-new-tokens", "4", "--compare-separate", "0"]
    for name, expected in (("mistral", True), ("llama", False)):
        model = tiny.save(tmp_path / name, name)
        assert main([*command, "--model", model, "--out", str(tmp_path / f"{name}.jsonl")]) == 0
        assert ("the responses to 2 prompts were computed once more" in capsys.readouterr().err) == expected


def test_limit_takes_the_first_rows(prompts: Path, tmp_path: Path) -> None:
    done("sample", *FAKE, "--prompts", prompts, "--limit", 3, "--out", tmp_path / "s.jsonl")
    assert [row["id"] for row in read_rows(tmp_path / "s.jsonl")] == ["p0", "p1", "p2"]


# Pipes


def piped(env: dict[str, str], arguments: list[Any], given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    words = [str(word) for word in arguments]
    return subprocess.run([*PROGRAM, *words], input=given, env=env, capture_output=True, check=True)


def test_steps_in_a_pipe_write_what_steps_in_files_write(
    prompts: Path, tmp_path: Path, child_env: dict[str, str]
) -> None:
    samples = piped(child_env, ["sample", *FAKE, "--prompts", "-"], prompts.read_bytes())
    scored = piped(child_env, ["judge", *FAKE], samples.stdout)
    selected = piped(child_env, ["select", "--json"], scored.stdout)
    files = steps_in_files(prompts, tmp_path)
    assert [file.read_bytes() for file in files] == [samples.stdout, scored.stdout, selected.stdout]
    assert json.loads(selected.stderr.splitlines()[-1]) == summary(files[2])
    assert samples.stderr == scored.stderr == b""


def test_a_reader_that_goes_away(tmp_path: Path, child_env: dict[str, str]) -> None:
    """`selfjudge sample | head -1`: no traceback, and no more work than the pipe holds."""
    rows = "".join(json.dumps({"prompt": f"number {i}"}) + "\n" for i in range(5000))
    (tmp_path / "many.jsonl").write_text(rows)
    command = [*PROGRAM, "sample", *FAKE, "--prompts", str(tmp_path / "many.jsonl")]
    with subprocess.Popen(command, env=child_env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141
    assert json.loads(first)["messages"][0]["content"] == "number 0"


def test_a_gzip_file_is_read_like_the_plain_one(prompts: Path, tmp_path: Path) -> None:
    packed = tmp_path / "prompts.jsonl.gz"
    packed.write_bytes(gzip.compress(prompts.read_bytes()))
    done("sample", *FAKE, "--prompts", prompts, "--out", tmp_path / "a.jsonl")
    done("sample", *FAKE, "--prompts", packed, "--out", tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_json_and_table(prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sample", *FAKE[:-1], "--prompts", str(prompts), "--out", str(tmp_path / "s.jsonl")]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == summary(tmp_path / "s.jsonl")
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["prompts           20", "responses         80"]
    assert main([*command, "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_little_label_mass_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A random model spreads its probability over the vocabulary; the fake backend puts 4 fifths on the labels."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "1", "category": "math", "prompt": "one", "responses": ["this", "that"]}\n')
    model = make_model(tmp_path / "model")
    assert main(["judge", "--model", str(model), "--input", str(rows), "--out", str(tmp_path / "a.jsonl")]) == 0
    assert "of the probability is on Yes and No" in capsys.readouterr().err
    fake = ["--backend", "fake", "--model", "any"]
    assert main(["judge", *fake, "--input", str(rows), "--out", str(tmp_path / "b.jsonl")]) == 0
    assert "of the probability" not in capsys.readouterr().err
