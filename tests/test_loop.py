"""The loop on a small random model: what it writes, that it goes on after any kill, what it refuses."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import done, summary
from models import make_model, make_prompts

from selfjudge import loop
from selfjudge.checkpoints import COMPLETE, last_checkpoint
from selfjudge.checks import build_checked
from selfjudge.cli import main
from selfjudge.config import AlignConfig
from selfjudge.console import Console
from selfjudge.errors import ConfigError, DataError, StepError
from selfjudge.inputs import Source, survey
from selfjudge.loop import _stretch
from selfjudge.records import Example, Message
from selfjudge.store import read_meta, read_rows

KILLS = int(os.environ.get("SELFJUDGE_KILLS", "8"))
FILES_TO_DIE_AT = (
    "round-1/samples.jsonl",
    "round-1/checkpoints",
    "round-1/model.tmp",
    "round-1/model",
    "round-2/scored.meta.json",
)
OPTIONS: dict[str, Any] = {
    "rounds": 2,
    "max_new_tokens": 6,
    "keep_unfinished": True,
    "holdout": 0.1,
    "eval_samples": 2,
    "batch_size": 8,
    "save_steps": 2,
    "sample_batch": 32,
    "num_responses": 3,
}
ROWS = ("prompts", "samples", "scored", "selected", "evaluation")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, `prompts.jsonl` (90 prompts) and a finished run of two rounds in `straight/run`."""
    folder = tmp_path_factory.mktemp("loop")
    make_model(folder / "model")
    make_prompts(folder / "prompts.jsonl", 90)
    (folder / "straight").mkdir()
    align(folder, out=folder / "straight" / "run")
    return folder


def options(here: Path, **changes: Any) -> dict[str, Any]:
    paths = {"model": str(here / "model"), "prompts": str(here / "prompts.jsonl")}
    return paths | OPTIONS | {name: str(v) if isinstance(v, Path) else v for name, v in changes.items()}


def align(here: Path, **changes: Any) -> dict[str, Any]:
    return loop.run(build_checked(AlignConfig, options(here, **changes)), Console(quiet=True))


def as_flags(values: dict[str, Any]) -> list[str]:
    flags = ["align", "--quiet"]
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        flags += [flag] if value is True else [flag, str(value)]
    return flags


def row_files(run: Path) -> dict[str, bytes]:
    names = [f"{part}/{name}.jsonl" for part in ("start", "round-1", "round-2") for name in ROWS]
    return {name: (run / name).read_bytes() for name in names if (run / name).exists()}


def weights(run: Path) -> dict[str, bytes]:
    return {str(file.relative_to(run)): file.read_bytes() for file in sorted(run.rglob("model/*.safetensors"))}


def training_log(run: Path, number: int) -> list[dict[str, Any]]:
    """Without the seconds it took."""
    rows = read_rows(run / f"round-{number}" / "training.jsonl")
    return [{key: value for key, value in row.items() if "second" not in key and "runtime" not in key} for row in rows]


def ids(file: Path) -> list[str]:
    return [row["id"] for row in read_rows(file)]


# What a run writes


def test_every_prompt_is_sampled_judged_and_selected_once(here: Path) -> None:
    run = here / "straight" / "run"
    for number in (1, 2):
        folder = run / f"round-{number}"
        prompts = ids(folder / "prompts.jsonl")
        assert len(prompts) == len(set(prompts)) > 60
        assert sorted(ids(folder / "samples.jsonl")) == sorted(prompts)
        assert ids(folder / "scored.jsonl") == ids(folder / "samples.jsonl")
        selection = read_meta(folder / "selected.jsonl")
        assert selection is not None
        dropped = sum(selection["summary"]["dropped"].values())
        assert len(ids(folder / "selected.jsonl")) + dropped == len(prompts)
        trained = read_meta(folder / "training.jsonl")
        assert trained is not None
        counts = trained["summary"]
        selected = len(ids(folder / "selected.jsonl"))
        assert counts["prompts"] + counts["validation_prompts"] + counts["too_long"] == selected
        assert counts["reference"] == "sample"  # the sampler's own log-probabilities agree with the trainer's


def test_held_out_prompts_are_in_no_round(here: Path) -> None:
    run = here / "straight" / "run"
    held_out = set(ids(run / "start" / "evaluation.jsonl"))
    used = {key for number in (1, 2) for key in ids(run / f"round-{number}" / "prompts.jsonl")}
    assert held_out
    assert not held_out & used
    assert held_out | used == {f"p{i}" for i in range(90)}
    assert set(ids(run / "round-2" / "evaluation.jsonl")) == held_out


def test_the_second_round_samples_from_the_trained_model_with_other_random_numbers(here: Path) -> None:
    first, second = (read_meta(here / "straight" / "run" / f"round-{n}" / "samples.jsonl") for n in (1, 2))
    assert first is not None
    assert second is not None
    assert first["config"]["model"] == str(here / "model")
    assert second["config"]["model"].startswith("round-1/model, trained as ")
    assert first["config"]["seed"] != second["config"]["seed"]


def test_training_changes_the_adapter_in_every_round(here: Path) -> None:
    found = weights(here / "straight" / "run")
    assert len(found) == 2
    assert len(set(found.values())) == 2


# Kills


def test_a_run_killed_again_and_again_ends_as_a_straight_one(here: Path, child_env: dict[str, str]) -> None:
    """SELFJUDGE_KILLS sets how often (default 8): when certain files appear, then at random moments."""
    place = here / "killed"
    place.mkdir()
    numbers = random.Random(0)
    at_random = [numbers.uniform(0.05, 2.0) for _ in range(3 * KILLS)]
    task = {
        "arguments": as_flags(options(here, out="run")),
        "folder": "run",
        "moments": [*FILES_TO_DIE_AT, *at_random],
        "kills": KILLS,
    }
    program = [sys.executable, "-W", "error", str(Path(__file__).with_name("killing.py")), json.dumps(task)]
    done = subprocess.run(program, cwd=place, env=child_env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    print(told)
    assert told["code"] == 0, done.stderr
    assert told["kills"] == KILLS
    straight = here / "straight" / "run"
    for name in told["finished"]:
        killed = place / name
        assert row_files(killed) == row_files(straight)
        assert weights(killed) == weights(straight)
        for number in (1, 2):
            assert training_log(killed, number) == training_log(straight, number)
        assert not [*killed.rglob("*.tmp"), *killed.rglob("*.old"), *killed.rglob("checkpoints")]


def test_a_checkpoint_in_pieces_is_not_resumed_from(tmp_path: Path) -> None:
    """transformers writes a checkpoint's files one after the other into their final place."""
    for step, marked in ((2, True), (10, True), (12, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "optimizer.pt").touch()
        if marked:
            (folder / COMPLETE).touch()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert not (tmp_path / "checkpoint-12").exists()
    assert last_checkpoint(tmp_path / "none") is None


# Going on, and refusing to


@pytest.fixture
def copy(here: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(here / "straight" / "run", tmp_path / "run"))


def test_one_round_then_two_equals_two_rounds(here: Path, tmp_path: Path) -> None:
    one = align(here, out=tmp_path / "run", rounds=1)
    assert set(one) == {"start", "round-1", "model", "report"}
    before = row_files(tmp_path / "run")
    two = align(here, out=tmp_path / "run", rounds=2)
    assert set(two) == {"start", "round-1", "round-2", "model", "report"}
    assert {name: row_files(tmp_path / "run")[name] for name in before} == before
    assert row_files(tmp_path / "run") == row_files(here / "straight" / "run")
    assert weights(tmp_path / "run") == weights(here / "straight" / "run")


def test_a_finished_run_is_only_read(here: Path) -> None:
    run = here / "straight" / "run"
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*.jsonl")}
    assert align(here, out=run)["round-2"]
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*.jsonl")} == before


def test_a_changed_option_is_refused_and_not_recorded(here: Path) -> None:
    run = here / "straight" / "run"
    before = (run / "run.json").read_text()
    with pytest.raises(ConfigError, match=r"beta: was 0\.1, now 0\.2.*give another --out"):
        align(here, out=run, beta=0.2)
    with pytest.raises(ConfigError, match=r"temperature: was 0\.7, now 0\.9"):
        align(here, out=run, temperature=0.9)
    assert (run / "run.json").read_text() == before


def test_other_prompts_are_refused(here: Path, tmp_path: Path) -> None:
    other = make_prompts(tmp_path / "prompts.jsonl", 91)
    with pytest.raises(ConfigError, match="input"):
        align(here, out=here / "straight" / "run", prompts=other)


def test_options_of_speed_and_memory_may_change(here: Path) -> None:
    assert align(here, out=here / "straight" / "run", sample_batch=7, token_budget=99, micro_batch=4, save_steps=0)


def test_a_run_that_was_moved_goes_on(here: Path, copy: Path) -> None:
    """The models of its rounds are named by their place, but what they are has not changed."""
    shutil.rmtree(copy / "round-2")
    align(here, out=copy)
    assert row_files(copy) == row_files(here / "straight" / "run")


def test_judged_in_place_while_sampling(here: Path, tmp_path: Path) -> None:
    """The judge's step passes the scores on; interrupted while sampling, the run ends with the same rows."""
    changes: dict[str, Any] = {"in_place": True, "rounds": 1, "compare_separate": 3}
    align(here, out=tmp_path / "run", **changes)
    folder = tmp_path / "run" / "round-1"
    samples = list(read_rows(folder / "samples.jsonl"))
    assert list(read_rows(folder / "scored.jsonl")) == samples
    assert all(len(row["scores"]) == len(row["responses"]) == 3 and row["category"] for row in samples)
    assert "agreement" in summary(folder / "samples.jsonl")
    assert (
        summary(folder / "scored.jsonl")["mean_score"]
        != summary(here / "straight" / "run" / "round-1" / "scored.jsonl")["mean_score"]
    )

    before = row_files(tmp_path / "run")
    whole = (folder / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "samples.jsonl").write_bytes(b"".join(whole[:20]))
    meta = folder / "samples.meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"done": False}))
    align(here, out=tmp_path / "run", **changes)
    assert row_files(tmp_path / "run") == before


# The first model as reference and as judge


def test_the_first_model_can_be_reference_and_judge(here: Path, tmp_path: Path) -> None:
    """In round 2 the first model judges and is the reference; what is evaluated is the round's own model."""
    run = tmp_path / "run"
    align(here, out=run, reference="first", judge_model=here / "model", learning_rate=0.01)
    trained = [summary(run / f"round-{number}" / "training.jsonl") for number in (1, 2)]
    assert [one["reference"] for one in trained] == ["first", "first"]
    assert trained[0]["first_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(trained[1]["first_loss"] - math.log(2)) > 1e-4

    samples = run / "round-2" / "samples.jsonl"
    for name, model in (("first", here / "model"), ("own", run / "round-1" / "model")):
        done("judge", "--quiet", "--model", model, "--input", samples, "--out", tmp_path / f"{name}.jsonl")
    scored = list(read_rows(run / "round-2" / "scored.jsonl"))
    assert scored == list(read_rows(tmp_path / "first.jsonl"))
    assert scored != list(read_rows(tmp_path / "own.jsonl"))

    held_out = ids(run / "start" / "evaluation.jsonl")
    questions = tmp_path / "questions.jsonl"
    lines = (here / "prompts.jsonl").read_text().splitlines(keepends=True)
    questions.write_text("".join(line for line in lines if json.loads(line)["id"] in held_out))
    settings = ["--eval-samples", 2, "--max-new-tokens", 6, "--sample-batch", 32, "--quiet"]
    for name, model in (("start", here / "model"), ("round-2", run / "round-2" / "model")):
        out = tmp_path / f"{name}-evaluation.jsonl"
        done("evaluate", "--model", model, "--benchmark", questions, "--out", out, *settings)
        assert list(read_rows(out)) == list(read_rows(run / name / "evaluation.jsonl"))
    start, last = (list(read_rows(run / name / "evaluation.jsonl")) for name in ("start", "round-2"))
    assert start != last


# Alarms


def change_summary(file: Path, **changes: Any) -> None:
    meta = file.with_suffix(".meta.json")
    found = json.loads(meta.read_text())
    meta.write_text(json.dumps(found | {"summary": found["summary"] | changes}))


@pytest.fixture
def fallen(copy: Path) -> Path:
    """The finished run, its margin in round 2 half of that in round 1."""
    margin = summary(copy / "round-1" / "selected.jsonl")["mean_score_margin"]
    change_summary(copy / "round-2" / "selected.jsonl", mean_score_margin=margin / 2)
    return copy


def test_the_figures_of_a_round_are_recorded(here: Path) -> None:
    folder = here / "straight" / "run" / "round-1"
    recorded = json.loads((folder / "alarms.json").read_text())
    rows = list(read_rows(folder / "selected.jsonl"))
    margins = [row["scores"][0]["value"] - row["scores"][1]["value"] for row in rows]
    assert recorded["figures"]["margin"] == pytest.approx(sum(margins) / len(margins))
    assert recorded["figures"]["length"] == summary(folder / "samples.jsonl")["mean_tokens"]
    assert all(value is not None for value in recorded["figures"].values())


def test_an_alarm_is_said_and_recorded_and_the_run_goes_on(
    here: Path, fallen: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = loop.run(build_checked(AlignConfig, options(here, out=fallen)), Console())
    words = found["round-2"]["alarms"]["margin"]
    assert words.startswith("the mean margin fell by more than 10% from round 1")
    assert f"round-2: alarm (margin): {words}" in capsys.readouterr().err
    assert json.loads((fallen / "round-2" / "alarms.json").read_text())["alarms"]["margin"] == words
    assert "stopped" not in found
    assert "margin" not in found["round-1"].get("alarms", {})
    silent = align(here, out=fallen, warn_on="none")
    assert not any("alarms" in silent[name] for name in ("round-1", "round-2"))


def test_a_run_that_an_alarm_ends_stays_ended(here: Path, fallen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three rounds were asked for; the second raises the alarm. The same command again says the same."""
    flags = [word for word in as_flags(options(here, out=fallen, rounds=3, stop_on="margin")) if word != "--quiet"]
    assert main(flags) == 0
    first = capsys.readouterr()
    line = "stopped: round 2 of 3 is the last, --stop-on margin: the mean margin fell by more than 10% from round 1"
    assert line in first.err
    assert not (fallen / "round-3").exists()
    assert "round 2 of 3 is the last" in json.loads((fallen / "run.json").read_text())["stopped"]["words"]
    page = (fallen / "report.html").read_text()
    assert "Stopped: round 2 of 3 is the last" in page
    assert "has not begun" not in page
    before = {file: file.read_bytes() for file in fallen.rglob("*") if file.is_file() and file.name != "report.html"}
    assert main(flags) == 0
    again = capsys.readouterr()
    assert (line in again.err, again.out) == (True, first.out)
    assert {file: file.read_bytes() for file in before} == before
    assert not (fallen / "round-3").exists()


def test_without_the_stop_rule_a_stopped_run_goes_on(here: Path, fallen: Path) -> None:
    assert "stopped" in align(here, out=fallen, rounds=3, stop_on="margin")
    found = align(here, out=fallen, rounds=3)
    assert found["round-3"]
    assert "stopped" not in json.loads((fallen / "run.json").read_text())


def test_margins_of_a_control_judge_are_not_watched(here: Path, fallen: Path) -> None:
    config = build_checked(AlignConfig, options(here, judge="oracle"))
    assert math.isnan(loop._round_figures(config, fallen / "round-1").margin)


# Prompts and benchmarks


def _prompts(number: int) -> Source:
    return survey("p", lambda: (Example(f"p{i}", (Message("user", "?"),)) for i in range(number)))


@pytest.mark.parametrize(
    ("number", "size", "expected"),
    [
        (1, 2, ["p0", "p1"]),
        (2, 2, ["p2", "p3"]),
        (3, 2, ["p4", "p0"]),  # from the top at the end
        (4, 2, ["p1", "p2"]),
        (2, 0, ["p0", "p1", "p2", "p3", "p4"]),
        (2, 9, ["p0", "p1", "p2", "p3", "p4"]),
    ],
)
def test_stretches_follow_each_other(number: int, size: int, expected: list[str]) -> None:
    assert [prompt.id for prompt in _stretch(_prompts(5), number, size)] == expected


def test_rounds_share_no_prompt_as_long_as_there_are_new_ones() -> None:
    """10 prompts in rounds of 3: rounds 1 to 3 are disjoint, the fourth has the last one and two used before."""
    rounds = [[prompt.id for prompt in _stretch(_prompts(10), number, 3)] for number in (1, 2, 3, 4)]
    assert len({*rounds[0], *rounds[1], *rounds[2]}) == 9
    assert rounds[3] == ["p9", "p0", "p1"]


@pytest.mark.parametrize(
    ("number", "size", "expected"),
    [
        (3, 3, "round-3: 3 prompts, 4 responses each"),
        (4, 3, "round-4: 3 prompts (2 of them again, the file has 10), 4 responses each"),
        (5, 3, "round-5: 3 prompts (3 of them again, the file has 10), 4 responses each"),
        (1, 0, "round-1: 10 prompts, 4 responses each"),
        (2, 0, "round-2: 10 prompts (10 of them again, the file has 10), 4 responses each"),
        (1, 99, "round-1: 10 prompts, 4 responses each"),
    ],
)
def test_prompts_that_are_used_again_are_said(number: int, size: int, expected: str) -> None:
    config = AlignConfig(model="m", prompts="p", prompts_per_round=size)
    assert loop._opening(config, number, 10) == expected


def test_a_benchmark_file_and_stretches(here: Path, tmp_path: Path) -> None:
    benchmark = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": f"one {i}", "chosen": "Yes", "rejected": "No", "reference": "Yes"} for i in range(3)]
    benchmark.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    values = options(here, out=tmp_path / "run", benchmark=benchmark, prompts_per_round=12)
    del values["holdout"]
    found = loop.run(build_checked(AlignConfig, values), Console(quiet=True))
    assert found["start"]["judge_accuracy"]["n"] == 3
    first, second = (ids(tmp_path / "run" / f"round-{n}" / "prompts.jsonl") for n in (1, 2))
    assert first == [f"p{i}" for i in range(12)]
    assert second == [f"p{i}" for i in range(12, 24)]


def test_the_oracle_without_references_is_refused_before_anything_is_sampled(here: Path, tmp_path: Path) -> None:
    prompts = make_prompts(tmp_path / "prompts.jsonl", 20, references=False)
    with pytest.raises(DataError, match=r"prompts\.jsonl: 20 rows have no `reference`.*the first is p0"):
        align(here, prompts=prompts, judge="oracle", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_round_without_a_pair_says_why(here: Path, tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"no prompt gives a pair .*fewer than 2 finished responses: \d+"):
        align(here, out=tmp_path / "run", keep_unfinished=False, max_new_tokens=1)


def test_too_few_prompts_to_hold_out(here: Path, tmp_path: Path) -> None:
    prompts = make_prompts(tmp_path / "prompts.jsonl", 2)
    with pytest.raises(DataError, match=r"2 prompts are too few to hold out 10%; give more prompts"):
        align(here, prompts=prompts, out=tmp_path / "run")


def test_two_processes_on_one_run(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import fcntl

    run = tmp_path / "run"
    (run / "start").mkdir(parents=True)
    with (run / "start" / "evaluation.jsonl").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main(as_flags(options(here, out=run))) == 2
    assert "another process is writing it" in capsys.readouterr().err
