"""Every judge on every benchmark, in the loop's own steps, and cut off in the middle of its rows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from commands import done, summary
from models import make_model, make_prompts
from transformers import AutoConfig, AutoModelForSequenceClassification

from selfjudge.benchmarks import BENCHMARKS
from selfjudge.judges import JUDGES
from selfjudge.records import Example
from selfjudge.store import read_rows

FAKE = ["--backend", "fake", "--model", "fake"]
WRITES = ("rating", "pairwise-verdict")
"""Judges that write text; a random model's cannot be read, the fake backend's mostly can."""


def numbered(kind: str, count: int) -> list[str]:
    return [f"{kind} response {number}" for number in range(count)]


def rows_of(benchmark: str) -> list[dict[str, Any]]:
    """Six rows in the benchmark's own shape."""
    prompts = [f"Is {number} a prime?" for number in range(6)]
    if benchmark == "rm-bench":
        lists = {"chosen": numbered("right", 3), "rejected": numbered("wrong", 3)}
        return [{"id": n, "prompt": p, "subset": "alpacaeval", **lists} for n, p in enumerate(prompts)]
    if benchmark == "rewardbench2":
        best = {"chosen": ["right"], "rejected": numbered("wrong", 3), "subset": "Math"}
        tied = {"chosen": numbered("right", 2), "rejected": ["wrong"], "subset": "Ties"}
        rows = [{"id": str(n), "prompt": p, **best} for n, p in enumerate(prompts[:4])]
        ref = {"id": "ref:1", "prompt": prompts[4], **tied, "chosen": ["right"]}
        return [*rows, ref, {"id": "tied:1", "prompt": prompts[5], **tied}]
    pair = {"chosen": "right", "rejected": "wrong, and longer", "subset": "hep-python"}
    return [{"prompt": prompt, **pair} for prompt in prompts]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for each benchmark, and prompts."""
    folder = tmp_path_factory.mktemp("data")
    for name in BENCHMARKS:
        (folder / name).mkdir()
        file = folder / name / ("chat_filtered.json" if name == "rm-bench" else "rows.json")
        file.write_text(json.dumps(rows_of(name)))
    make_prompts(folder / "prompts.jsonl", 6)
    make_model(folder / "policy")
    return folder


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward") / "model"
    kind, options = tiny._CONFIGS["llama"]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, num_labels=1, vocab_size=tiny.VOCABULARY, pad_token_id=0, **options)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(str(folder))
    tiny.tokenizer().save_pretrained(str(folder))
    return folder


def asked(judge: str, reward_model: Path) -> list[Any]:
    """Who is asked: a fake model, a small reward model, or nobody."""
    return {"nobody": [], "reward model": ["--model", reward_model], "language model": FAKE}[JUDGES[judge].asks]


@pytest.mark.parametrize("benchmark", BENCHMARKS)
@pytest.mark.parametrize("judge", [name for name in JUDGES if name != "oracle"])
def test_every_judge_on_every_benchmark(judge: str, benchmark: str, data: Path, reward_model: Path, tmp_path: Path):
    """Each response of each row has a score or a reason, and each figure of the benchmark is there."""
    file = next((data / benchmark).iterdir())
    source = ["--benchmark", benchmark, "--data", file]
    done("bench", "--judge", judge, *asked(judge, reward_model), *source, "--out", tmp_path / "out", "--quiet")
    rows = [Example.from_json(row) for row in read_rows(tmp_path / "out" / "rows.jsonl")]
    assert len(rows) == 6
    for row in rows:
        assert len(row.scores) == len(row.responses) > 1
        assert all(math.isnan(score.value) == (score.reason is not None) for score in row.scores)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["unit"] == JUDGES[judge].unit
    expected = {
        "rm-bench": ["domains", "overall"],
        "rewardbench": ["sections", "overall"],
        "rewardbench2": ["subsets", "overall"],
        "pairs": ["judge_accuracy"],
        "rewardbench-paper": ["comparable_with_leaderboard"],
    }
    assert set(expected[benchmark]) <= set(results["figures"])


@pytest.mark.parametrize("judge", [name for name in JUDGES if name not in (*WRITES, "oracle", "random")])
def test_every_judge_trains(judge: str, data: Path, reward_model: Path, tmp_path: Path):
    """One round of the loop; the next model is there."""
    judging = ["--judge-model", reward_model] if judge == "reward-model" else []
    small = ["--rounds", 1, "--max-new-tokens", 4, "--num-responses", 3, "--eval-samples", 1, "--keep-unfinished"]
    paths = ["--model", data / "policy", "--prompts", data / "prompts.jsonl", "--out", tmp_path / "run"]
    done("align", *paths, *small, "--holdout", 0.3, "--judge", judge, *judging, "--quiet")
    assert summary(tmp_path / "run" / "round-1" / "scored.jsonl")["missing"] == 0
    assert (tmp_path / "run" / "round-1" / "model").is_dir()


@pytest.mark.parametrize("judge", WRITES)
def test_what_is_written_is_selected_and_trained_on(judge: str, data: Path, tmp_path: Path):
    """The steps of the loop, with a backend whose judgements can be read."""
    files = {name: tmp_path / f"{name}.jsonl" for name in ("samples", "scored", "selected")}
    sampling = ["--max-new-tokens", 4, "--num-responses", 4]
    done(
        "sample", "--model", data / "policy", "--prompts", data / "prompts.jsonl", *sampling, "--out", files["samples"]
    )
    done("judge", *FAKE, "--judge", judge, "--input", files["samples"], "--out", files["scored"])
    done("select", "--keep-unfinished", "--input", files["scored"], "--out", files["selected"])
    assert summary(files["selected"])["prompts"] > 0
    training = ["--validation", 0, "--input", files["selected"], "--out", tmp_path / "trained"]
    done("train", "--model", data / "policy", *training)
    assert (tmp_path / "trained" / "model").is_dir()


@pytest.mark.parametrize("judge", ["yes-no", "pairwise", "rating", "committee", "reward-model"])
def test_cut_off_and_gone_on_with(judge: str, data: Path, reward_model: Path, tmp_path: Path):
    """A run that lost the second half of its rows, the last of them torn, ends with the same rows and figures."""
    file = next((data / "rewardbench").iterdir())
    command = ["bench", "--judge", judge, *asked(judge, reward_model), "--benchmark", "rewardbench", "--data", file]
    done(*command, "--out", tmp_path / "out", "--quiet")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    rows = tmp_path / "out" / "rows.jsonl"
    rows.write_bytes(before["rows.jsonl"][: len(before["rows.jsonl"]) // 2])
    (tmp_path / "out" / "results.json").unlink()
    done(*command, "--out", tmp_path / "out", "--quiet")
    assert rows.read_bytes() == before["rows.jsonl"]
    again = json.loads((tmp_path / "out" / "results.json").read_text())
    assert again["figures"] == json.loads(before["results.json"])["figures"]
