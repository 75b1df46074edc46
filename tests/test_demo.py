"""The demo is the loop with its settings, once per arm; here with few prompts and few samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from selfjudge import demo
from selfjudge.cli import main

SMALL = {"benchmark": "lab-dev", "prompts_per_round": 48, "num_responses": 4, "eval_samples": 2, "batch_size": 16}


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    monkeypatch.setattr(demo, "SETTINGS", demo.SETTINGS | SMALL)
    arguments = ["demo", "--rounds", "1", "--controls", "--quiet", "--json", "--out", str(tmp_path / "demo")]
    assert main(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(arguments) == 0  # finished: nothing is computed again
    assert json.loads(capsys.readouterr().out) == first
    return first


def test_one_object_with_the_figures_of_every_arm(told: dict[str, object], tmp_path: Path) -> None:
    assert list(told) == ["start", "arms", "report"]
    assert isinstance(told["arms"], dict)
    assert list(told["arms"]) == ["yes-no", "oracle", "random"]
    for figures in (told["start"], *told["arms"].values()):
        assert list(figures) == ["greedy", "sampled", "judge_accuracy"]
        assert all(0 < value <= 1 for value in figures.values())
    page = Path(str(told["report"]))
    assert page == tmp_path / "demo" / "report.html"
    assert all(judge in page.read_text() for judge in told["arms"])
    arms = [tmp_path / "demo" / judge for judge in told["arms"]]
    for file in ("start/evaluation.jsonl", "round-1/samples.jsonl"):  # what no judge has touched is the same
        assert len({(arm / file).read_bytes() for arm in arms}) == 1
    assert len({(arm / "round-1" / "scored.jsonl").read_bytes() for arm in arms}) == 3
    oracle = json.loads((arms[1] / "round-1" / "selected.meta.json").read_text())["summary"]
    assert oracle["best_right_share"] == 1.0
