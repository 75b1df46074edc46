"""`selfjudge compare`: two runs joined by row id, by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from commands import done

from selfjudge.cli import main
from selfjudge.records import Example, Message, Response, Score
from selfjudge.store import StepMeta, open_output


def run_of(
    folder: Path,
    differences: Sequence[float | None],
    digest: str = "x",
    scale: float = 1.0,
    first: int = 0,
    finish: bool = True,
) -> Path:
    """A bench run's rows r0, r1, ...: a right and a wrong response whose scores differ by these, `scale` times."""
    meta = StepMeta("bench", {}, {"benchmark": {"name": "n", "sha256": digest}})
    with open_output(folder / "rows.jsonl", meta) as output:
        for number, difference in enumerate(differences, start=first):
            value = float("nan") if difference is None else 100 + scale * difference
            output.append([judged(number, [value, 100.0]).to_json()])
        if finish:
            output.finish({})
    return folder


def judged(number: int, scores: list[float], wrong: str = "wrong") -> Example:
    tags = {"subset": "even" if number % 2 == 0 else "odd"}
    messages = (Message("user", f"Question\n{number}"),)
    responses = (Response("right"), Response(wrong))
    given = tuple(map(Score, scores))
    return Example(f"r{number}", messages, responses=responses, gold=(0,), scores=given, tags=tags)


A = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0, -1.0, 0.0, None]
B = [1.0, -1.0, -1.0, -1.0, -1.0, -1.0, 1.0, -1.0, 1.0, 1.0]
"""Only a is right in rows 1 to 5, only b in 6 and 8 (a tie is not right), both in 0, none in 7; a has no score of 9."""


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    return run_of(tmp_path / "one", A), run_of(tmp_path / "other", B, scale=1000.0)


def compared(capsys: pytest.CaptureFixture[str], *arguments: Any) -> dict[str, Any]:
    capsys.readouterr()
    done("compare", *arguments, "--json")
    return json.loads(capsys.readouterr().out)


def test_by_hand(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """On the 9 rows of both: a has 6 and a tie, 6.5/9; b has 3 of 9. McNemar 5 to 2: 2 (1 + 7 + 21) / 2^7 = 58/128."""
    found = compared(capsys, *runs)
    assert (found["rows"], found["only_in_a"], found["only_in_b"], found["pairs"]) == (10, 0, 0, 10)
    assert (found["missing_in_a"], found["missing_in_b"]) == (1, 0)
    assert (found["accuracy_a"]["value"], found["accuracy_a"]["n"]) == (pytest.approx(6.5 / 9), 9)
    assert found["accuracy_b"]["value"] == pytest.approx(3 / 9)
    assert found["difference"]["value"] == pytest.approx(3.5 / 9)
    assert found["difference"]["low"] < 3.5 / 9 < found["difference"]["high"]
    assert found["mcnemar"] == {"only_a_right": 5, "only_b_right": 2, "p": 58 / 128}


def test_by_subset(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Even rows: a right in 0, 2, 4 and half in 8, b in 0, 6, 8. Odd rows 1, 3, 5, 7: a three, b none."""
    found = compared(capsys, *runs)["by_subset"]
    assert list(found) == ["even", "odd"]
    assert found["even"]["difference"]["value"] == pytest.approx((3.5 - 3) / 5)
    assert (found["odd"]["difference"]["value"], found["odd"]["difference"]["n"]) == (pytest.approx(3 / 4), 4)


def test_words_and_flags_are_the_same(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    one, other = runs
    expected = compared(capsys, one, other)
    assert compared(capsys, "--a", one, "--b", other) == expected
    assert compared(capsys, "--quiet", one, "--b", other) == expected
    swapped = compared(capsys, other, one)
    assert swapped["difference"]["value"] == -expected["difference"]["value"]
    assert main(["compare", str(one), str(other), "third"]) == 2
    assert "unexpected words: third" in capsys.readouterr().err


def test_rows_that_differ_are_listed(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done("compare", *runs, "--out", tmp_path / "new" / "differ.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "new" / "differ.jsonl").read_text().splitlines()]
    assert {row["id"]: row["only_right"] for row in rows} == dict.fromkeys(["r1", "r2", "r3", "r4", "r5"], "a") | {
        "r6": "b",
        "r8": "b",
    }
    first = next(row for row in rows if row["id"] == "r6")
    assert (first["scores_a"], first["scores_b"]) == ([99.0, 100.0], [1100.0, 100.0])
    assert first["messages"] == [{"role": "user", "content": "Question\n6"}]
    assert [response["text"] for response in first["responses"]] == ["right", "wrong"]
    assert "scores" not in first
    printed = capsys.readouterr().out
    assert printed.count("is right (a ") == 5
    assert "only b is right (a 99/100, b 1.1e+03/100): Question 6" in printed or "only a is right" in printed
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["differ.jsonl"]


def test_several_pairs_of_a_row_are_one_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One right among three: a beats both wrong ones, b one of them. Two pairs, but one discordant row."""
    for name, scores in (("a", [3.0, 1.0, 2.0]), ("b", [3.0, 1.0, 4.0])):
        with open_output(tmp_path / name / "rows.jsonl", StepMeta("bench", {})) as output:
            responses = tuple(map(Response, "xyz"))
            example = Example("r", (Message("user", "?"),), None, responses, (0,), scores=tuple(map(Score, scores)))
            output.append([example.to_json()])
            output.finish({})
    found = compared(capsys, tmp_path / "a", tmp_path / "b")
    assert (found["rows"], found["pairs"]) == (1, 2)
    assert (found["accuracy_a"]["value"], found["accuracy_b"]["value"]) == (1, 0.5)
    assert found["mcnemar"] == {"only_a_right": 1, "only_b_right": 0, "p": 1.0}
    assert found["difference"]["low"] is None  # one prompt has no interval, and JSON has no NaN
    assert "by_subset" not in found


def test_rows_of_one_alone_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows 0 to 3 against rows 2 to 7 of another file."""
    one, other = run_of(tmp_path / "a", [1.0] * 4), run_of(tmp_path / "b", [1.0] * 6, digest="y", first=2)
    done("compare", one, other)
    captured = capsys.readouterr()
    assert "different benchmark files or limits" in captured.err
    found = compared(capsys, one, other)
    assert (found["rows"], found["only_in_a"], found["only_in_b"], found["same_benchmark"]) == (2, 2, 4, False)
    assert "differ" not in found


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    capsys.readouterr()
    assert main(["compare", "--quiet", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_disjoint_runs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = run_of(tmp_path / "a", [1.0] * 2), run_of(tmp_path / "b", [1.0] * 2, first=2)
    assert "have no row in common; compare two runs of one benchmark" in refused(capsys, one, other)


def test_another_content_under_the_same_id_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = run_of(tmp_path / "a", [1.0])
    with open_output(tmp_path / "b" / "rows.jsonl", StepMeta("bench", {})) as output:
        output.append([judged(0, [1.0, 0.0], wrong="another").to_json()])
        output.finish({})
    assert "row r0: " in refused(capsys, one, tmp_path / "b")


def test_an_unfinished_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = run_of(tmp_path / "a", [1.0]), run_of(tmp_path / "b", [1.0], finish=False)
    assert "its `bench` step is not finished" in refused(capsys, one, other)


def test_rows_of_a_run_are_not_written_over(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    rows = runs[1] / "rows.jsonl"
    before = rows.read_text()
    assert "holds the rows of another command" in refused(capsys, *runs, "--out", rows)
    assert rows.read_text() == before


def test_rows_that_differ_go_to_a_pipe(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    done("compare", *runs, "--out", "-")
    captured = capsys.readouterr()
    assert len([json.loads(line) for line in captured.out.splitlines()]) == 7
    assert "mcnemar" in captured.err


def test_a_folder_without_rows_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = run_of(tmp_path / "a", [1.0])
    assert "no such folder; give the --out folder of selfjudge bench" in refused(capsys, one, tmp_path / "none")
    assert "has no rows.jsonl; give the --out folder of selfjudge bench" in refused(capsys, one, tmp_path)
    assert "--b is needed: folder of the other bench run" in refused(capsys, one)


def test_two_judges_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The oracle is right everywhere, so the random judge is never right alone."""
    for judge in ("oracle", "random"):
        done("bench", "--judge", judge, "--benchmark", "lab-dev", "--limit", 40, "--out", tmp_path / judge, "--quiet")
    found = compared(capsys, tmp_path / "oracle", tmp_path / "random")
    assert found["accuracy_a"]["value"] == 1
    assert found["mcnemar"]["only_b_right"] == 0
    assert found["mcnemar"]["p"] < 0.01
    assert found["difference"]["low"] > 0
