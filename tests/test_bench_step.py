"""`selfjudge bench`: rows and results, resumed and refused; the figures themselves have tests of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from selfjudge import questions
from selfjudge.cli import main
from selfjudge.config import BenchConfig
from selfjudge.console import Console
from selfjudge.inputs import survey
from selfjudge.records import Example, Message
from selfjudge.steps import bench
from selfjudge.store import read_rows

ROWS = [
    {"prompt": f"Question {number}?", "category": "chat", "chosen": f"right {number}", "rejected": f"wrong {number}"}
    for number in range(12)
]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def run(folder: Path, benchmark: Path | str, **options: object) -> dict[str, object]:
    given = {"benchmark": str(benchmark), "judge": "random", "out": str(folder)} | options
    return bench.run(BenchConfig(**given), Console(quiet=True))


def test_rows_and_results_are_written(tmp_path: Path, pairs: Path):
    figures = run(tmp_path / "out", pairs)
    rows = list(read_rows(tmp_path / "out" / "rows.jsonl"))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    right = sum(row["scores"][0]["value"] > row["scores"][1]["value"] for row in rows)
    assert figures["pairs"] == len(rows) == 12
    assert figures["judge_accuracy"]["value"] == pytest.approx(right / 12)
    assert results["figures"]["judge_accuracy"] == figures["judge_accuracy"]
    assert results["config"]["benchmark"] == str(pairs)


def test_a_part_is_the_same_in_any_order(tmp_path: Path, pairs: Path):
    """The rows with the smallest hashes are judged, wherever they stand."""
    turned = tmp_path / "turned.jsonl"
    turned.write_text("".join(json.dumps(row) + "\n" for row in reversed(ROWS)))
    run(tmp_path / "a", pairs, limit=5)
    run(tmp_path / "b", turned, limit=5)
    first, second = ({row["id"] for row in read_rows(tmp_path / name / "rows.jsonl")} for name in "ab")
    assert first == second
    assert len(first) == 5


@pytest.mark.parametrize("count", [0, 3, 4])
def test_no_more_than_all(count: int):
    examples = [Example(str(number), (Message("user", "?"),)) for number in range(3)]
    assert len(bench.some(survey("rows", lambda: iter(examples)), count)) == 3


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--benchmark", "rm-bensh"], "--benchmark rm-bensh: neither a file nor one of"),
        (["--benchmark", "pairs"], "--data is needed by --benchmark pairs"),
        (["--benchmark", "lab", "--data", "x.jsonl"], "--data has no effect with --benchmark lab"),
        (["--benchmark", "lab", "--judge", "yes-no"], "--model is needed by the yes-no judge"),
        (["--benchmark", "lab", "--model", "lab"], "--model has no effect with --judge random"),
    ],
)
def test_bad_options(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str):
    judge = [] if "--judge" in words else ["--judge", "random"]
    assert main(["bench", *judge, *words, "--out", str(tmp_path / "out")]) == 2
    assert line in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_changed_file_of_questions_is_noticed(tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str]):
    """Its content counts, not its name."""
    built_in = Path(questions.__file__).parent / "questions" / "yes_no.toml"
    mine = tmp_path / "mine.toml"
    mine.write_text(built_in.read_text())
    command = ["bench", "--backend", "fake", "--model", "fake", "--benchmark", str(pairs), "--out", str(tmp_path / "o")]
    assert main([*command, "--questions", str(mine)]) == 0
    assert main([*command, "--questions", str(mine.rename(tmp_path / "moved.toml"))]) == 0
    moved = tmp_path / "moved.toml"
    moved.write_text(moved.read_text().replace("without a bug", "without any bug"))
    capsys.readouterr()
    assert main([*command, "--questions", str(moved)]) == 2
    assert "made with other options (questions: was" in capsys.readouterr().err
