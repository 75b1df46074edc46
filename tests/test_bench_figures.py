"""`selfjudge bench`: what is in results.json, and that no order of the rows changes it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from commands import done

from selfjudge.console import table
from selfjudge.judging_figures import BINS
from selfjudge.records import Example, Message, Response, Score
from selfjudge.steps.bench import Judged
from selfjudge.steps.judge import JudgeFigures
from selfjudge.store import json_line

FAKE = ("--backend", "fake", "--model", "fake", "--quiet")


def pairs_of(count: int) -> list[dict[str, Any]]:
    """Without ids, in three categories; every fifth prompt comes twice, with other responses."""
    rows = []
    for number in range(count):
        prompt = f"What is {number - (number % 5 == 4)} + 1?"
        chosen = f"It is {number + 1}" + "!" * (number % 3)
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": f"It is {number + 3}"})
        rows[-1]["category"] = ("math", "chat", "code")[number % 3]
    return rows


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def figures(folder: Path) -> dict[str, Any]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads((folder / "results.json").read_text(), parse_constant=refuse)["figures"]


def test_figures_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything is in the file; the lists are in neither the table nor lost."""
    source = written(tmp_path / "pairs.jsonl", pairs_of(60))
    done("bench", *FAKE[:-1], "--benchmark", source, "--out", tmp_path / "run")
    found = figures(tmp_path / "run")
    assert found["truncated_share"] == 0
    assert found["pairs"] == 60
    assert list(found["by_category"]) == ["chat", "code", "math"]
    assert {each["n"] for each in found["by_category"].values()} == {20}
    calibration = found["calibration"]
    assert calibration["fitted_pairs"] + calibration["checked_pairs"] == 60
    assert sum(each["n"] for each in calibration["before"]["bins"]) == calibration["checked_pairs"]
    assert len(calibration["pointwise"]["bins"]) == BINS
    assert sum(each["n"] for each in calibration["pointwise"]["bins"]) == 120
    length = found["bias"]["length"]
    cases = ("accuracy_right_longer", "accuracy_right_shorter", "accuracy_equal_length")
    assert sum(length[name]["n"] for name in cases if name in length) == 60
    printed = capsys.readouterr().out
    assert "longer_preferred" in printed
    assert "bins" not in printed
    assert len(printed.splitlines()) < 60


def test_only_absolute_scores_are_checked_one_by_one(tmp_path: Path) -> None:
    source = written(tmp_path / "pairs.jsonl", pairs_of(30))
    done("bench", "--judge", "random", "--quiet", "--benchmark", source, "--out", tmp_path / "run")
    assert "pointwise" not in figures(tmp_path / "run")["calibration"]


def test_a_shuffled_file_has_the_same_figures(tmp_path: Path) -> None:
    """Every number to the last digit, intervals and means included."""
    rows = pairs_of(80)
    shuffled = random.Random(0).sample(rows, len(rows))
    for name, order in (("straight", rows), ("shuffled", shuffled)):
        done("bench", *FAKE, "--benchmark", written(tmp_path / f"{name}.jsonl", order), "--out", tmp_path / name)
    straight = figures(tmp_path / "straight")
    assert straight == figures(tmp_path / "shuffled")
    assert straight["judge_accuracy"]["low"] < straight["judge_accuracy"]["high"]
    assert straight["mean_score"] != 0


def test_another_token_budget_has_the_same_accuracies(tmp_path: Path, model_folder: Any) -> None:
    """Rows are packed otherwise, so scores differ by rounding; no verdict does."""
    source = written(tmp_path / "pairs.jsonl", pairs_of(12))
    options = ("--model", model_folder("llama"), "--quiet", "--benchmark", source)
    for budget in (450, 2048):
        done("bench", *options, "--token-budget", budget, "--out", tmp_path / str(budget))
    one, other = figures(tmp_path / "450"), figures(tmp_path / "2048")
    assert one["judge_accuracy"] == other["judge_accuracy"]
    assert one["by_category"] == other["by_category"]
    assert one["bias"] == other["bias"]
    assert 0 < one["judge_accuracy"]["value"] < 1
    assert one["mean_score"] == pytest.approx(other["mean_score"], abs=1e-4)


def test_a_finished_run_gives_its_figures_again(tmp_path: Path) -> None:
    source = written(tmp_path / "pairs.jsonl", pairs_of(20))
    command = ("bench", *FAKE, "--benchmark", source, "--out", tmp_path / "run")
    done(*command)
    first = (tmp_path / "run" / "results.json").read_text()
    (tmp_path / "run" / "results.json").unlink()
    done(*command)
    assert (tmp_path / "run" / "results.json").read_text() == first


def test_judged_rows_come_in_one_order(tmp_path: Path) -> None:
    rows = [Example(str(i), (Message("user", f"é {i}"),), responses=(Response("a"),)).to_json() for i in range(9)]
    for name, order in (("one", rows), ("other", rows[::-1])):
        (tmp_path / name).write_text("".join(json_line(row) for row in order))
    one, other = Judged(tmp_path / "one"), Judged(tmp_path / "other")
    assert list(one) == list(other) == list(one)
    assert {example.id for example in one} == set("012345678")
    assert len(one) == 9


def test_truncated_and_missing_ones_are_counted() -> None:
    scores = (Score(1.0, truncated=True), Score(float("nan"), reason="no grade"), Score(0.0), Score(0.5))
    counted = JudgeFigures()
    for _ in range(2):
        counted.add(Example("1", (Message("user", "?"),), responses=(Response("a"),) * 4, scores=scores))
    found = counted.summary()
    assert (found["truncated"], found["truncated_share"]) == (2, 0.25)
    assert (found["missing"], found["reasons"]) == (2, {"no grade": 2})
    assert "reasons" not in JudgeFigures().summary()


def test_a_table_leaves_out_lists() -> None:
    assert table({"a": 1, "much_longer": [1, 2], "part": {"b": 0.5, "bins": [{}]}}) == "a  1\npart\n  b  0.5"
    assert table({"matrix": {"plain": [0.5, None], "rich": [1.0, 0.25]}}) == (
        "matrix\n  plain  0.500    -  \n  rich   1.000  0.250"
    )
