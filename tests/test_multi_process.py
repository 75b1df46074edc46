"""Training in two processes on a CPU: the steps of one process, one writer, an exact resume."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from selfjudge.api import train
from selfjudge.cli import main
from selfjudge.processes import Processes
from selfjudge.store import read_meta, read_rows

ModelFolder = Callable[..., str]
Together = tuple[Path, subprocess.CompletedProcess[str]]
OPTIONS = {
    "device": "cpu",
    "loss": "irepo",
    "beta": "0.5",
    "batch_size": "4",
    "micro_batch": "1",
    "learning_rate": "1e-3",
    "validation": "0.2",
    "epochs": "4",
    "reference": "start",
    "lora_rank": "4",
    "lora_alpha": "8",
}
"""18 prompts, of which some validate: the last batch of an epoch has fewer than 4, and with one prompt left over the
second process has nothing to do in it."""
PROMPTS = 18


def test_shares_and_their_order():
    """Five items of two processes: 0, 2, 4 and 1, 3."""
    shares = [Processes(rank, 2).share(range(5)) for rank in range(2)]
    assert [list(share) for share in shares] == [[0, 2, 4], [1, 3]]
    assert list(Processes(2, 3).share(range(2))) == []


def test_one_process_exchanges_nothing():
    alone = Processes()
    assert alone.interleaved([5, 6]) == [5, 6]
    assert alone.from_first("a") == "a"
    weight = torch.nn.Parameter(torch.zeros(1))
    alone.add_gradients([weight])
    assert weight.grad is None


def test_what_cannot_run_in_several_processes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Refused before the processes look for each other."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    train_lab = ["train", "--model", "lab", "--out", "runs/x"]
    for arguments, problem in (
        (["demo"], "demo runs in one process; only train may be started by accelerate or torchrun"),
        ([*train_lab, "--input", "-"], "--input -: several processes cannot read from one pipe; give a file"),
        (
            [*train_lab, "--input", __file__, "--device", "cuda:1"],
            "--device cuda:1: several processes take one GPU each",
        ),
    ):
        assert main(arguments) == 2
        assert capsys.readouterr().err.startswith(f"selfjudge: {problem}")


def selected(path: Path) -> str:
    rows = [
        {
            "id": f"p{i}",
            "messages": [{"role": "user", "content": f"What is {i}?"}],
            "responses": [{"text": text} for text in (f"It is {i * 3} of course", f"No {i}", "Yes")],
            "strengths": [1.0 + i % 5, 0.3, -1.5],
        }
        for i in range(PROMPTS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def command(model: str, file: str, out: Path) -> list[str]:
    options = OPTIONS | {"save_steps": "3", "model": model, "input": file, "out": str(out)}
    return ["train", *(word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value))]


def launched(arguments: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    own = env | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, *arguments], env=own, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def needs_gloo() -> None:
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("this PyTorch has no gloo, which connects processes on a CPU")


def logged(out: Path) -> list[dict[str, Any]]:
    """The records but for what depends on the clock."""
    rows = [row for row in read_rows(out / "training.jsonl") if row["kind"] != "total"]
    return [{name: value for name, value in row.items() if name not in ("id", "kind")} for row in rows]


def weights(out: Path) -> dict[str, torch.Tensor]:
    (file,) = (out / "model").glob("*.safetensors")
    return load_file(file)


def assert_close(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [row.keys() for row in found] == [row.keys() for row in expected]
    for own, other in zip(found, expected, strict=True):
        assert without_none(own) == pytest.approx(without_none(other), rel=1e-4, abs=1e-5)


def without_none(row: dict[str, Any]) -> dict[str, Any]:
    """Missing figures as a word, which approx compares as it is."""
    return {name: -1e9 if value is None else value for name, value in row.items() if not isinstance(value, str)}


@pytest.fixture(scope="module")
def model(model_folder: ModelFolder) -> str:
    return model_folder("llama")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return selected(tmp_path_factory.mktemp("rows") / "selected.jsonl")


@pytest.fixture(scope="module")
def together(model: str, file: str, tmp_path_factory: pytest.TempPathFactory, child_env: dict[str, str]) -> Together:
    """The folder of a training in two processes, and what these said."""
    needs_gloo()
    out = tmp_path_factory.mktemp("together") / "out"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return out, launched([*launcher, "-m", "selfjudge.cli", *command(model, file, out)], child_env)


def test_two_processes_train_as_one(model: str, file: str, together: Together, tmp_path: Path):
    """Every logged figure of every step, the validations and the weights."""
    alone, (shared, _) = tmp_path / "alone", together
    summary = train(model, file, str(alone), quiet=True, **OPTIONS)
    assert summary["steps"] == 16
    assert_close(logged(shared), logged(alone))
    meta = read_meta(shared / "training.jsonl")
    assert meta is not None
    assert_close([meta["summary"]], [summary])
    first, second = weights(alone), weights(shared)
    assert max((first[name] - second[name]).abs().max().item() for name in first) < 1e-5


def test_only_the_first_process_speaks(together: Together):
    _, done = together
    assert done.stdout.count("last_loss") == 1
    assert done.stderr.count("train: needs about") == 1
    assert done.stderr.count("train: 2 processes, each with a share of every batch") == 1


def test_two_killed_processes_go_on_exactly(
    model: str, file: str, together: Together, tmp_path: Path, child_env: dict[str, str]
):
    """Both are killed when the checkpoint of step 3 is there; the second start ends with the bits of a straight run."""
    out, (straight, _) = tmp_path / "out", together
    task = {"arguments": command(model, file, out), "file": str(out / "checkpoints" / "checkpoint-3" / "complete")}
    done = launched([str(Path(__file__).with_name("killing_two.py")), json.dumps(task)], child_env)
    assert json.loads(done.stdout.splitlines()[-1]) == {"killed": True, "codes": [0, 0]}
    assert done.stderr.count("train: goes on from step") == 1
    assert logged(out) == logged(straight)
    first, second = weights(straight), weights(out)
    assert all(torch.equal(first[name], second[name]) for name in first)
