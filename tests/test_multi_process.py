"""Training in two processes on a CPU: the steps of one process, one writer, an exact resume."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from selfjudge.api import train
from selfjudge.cli import main
from selfjudge.processes import Processes
from selfjudge.store import read_meta, read_rows

ModelFolder = Callable[..., str]
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


def launch(model: str, file: str, out: Path, env: dict[str, str]) -> subprocess.Popen[str]:
    """The command in two processes, on a free port; what it says goes to files beside `out`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = OPTIONS | {"save_steps": "3", "model": model, "input": file, "out": str(out)}
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    command = [sys.executable, *launcher, "-m", "selfjudge.cli", "train", *flags]
    own = env | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    with spoken(out, "stdout").open("w") as said, spoken(out, "stderr").open("w") as remarks:
        return subprocess.Popen(command, env=own, stdout=said, stderr=remarks, text=True)


def spoken(out: Path, stream: str) -> Path:
    return out.with_suffix(f".{stream}")


def kill_all(launcher: subprocess.Popen[str]) -> None:
    """SIGKILL to the launcher and to the processes it started."""
    parent = psutil.Process(launcher.pid)
    for process in [parent, *parent.children(recursive=True)]:
        process.kill()
    launcher.wait()


def finish(launcher: subprocess.Popen[str], out: Path) -> None:
    code = launcher.wait(timeout=120)
    assert code == 0, spoken(out, "stderr").read_text()


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
def together(model: str, file: str, tmp_path_factory: pytest.TempPathFactory, child_env: dict[str, str]) -> Path:
    """The folder of a training in two processes."""
    needs_gloo()
    out = tmp_path_factory.mktemp("together") / "out"
    finish(launch(model, file, out, child_env), out)
    return out


def test_two_processes_train_as_one(model: str, file: str, together: Path, tmp_path: Path):
    """Every logged figure of every step, the validations and the weights."""
    alone = tmp_path / "alone"
    summary = train(model, file, str(alone), quiet=True, **OPTIONS)
    assert summary["steps"] == 16
    assert_close(logged(together), logged(alone))
    meta = read_meta(together / "training.jsonl")
    assert meta is not None
    assert_close([meta["summary"]], [summary])
    first, second = weights(alone), weights(together)
    assert max((first[name] - second[name]).abs().max().item() for name in first) < 1e-5


def test_only_the_first_process_speaks(together: Path):
    assert spoken(together, "stdout").read_text().count("last_loss") == 1
    assert spoken(together, "stderr").read_text().count("train: needs about") == 1
    assert spoken(together, "stderr").read_text().count("train: 2 processes, each with a share of every batch") == 1


def test_two_killed_processes_go_on_exactly(
    model: str, file: str, together: Path, tmp_path: Path, child_env: dict[str, str]
):
    """All are killed when the checkpoint of step 3 is there; the second start has the first one's bits."""
    out = tmp_path / "out"
    launcher = launch(model, file, out, child_env)
    while not (out / "checkpoints" / "checkpoint-3" / "complete").exists():
        assert launcher.poll() is None, spoken(out, "stderr").read_text()
        time.sleep(0.001)
    kill_all(launcher)
    assert not (out / "model").exists()
    finish(launch(model, file, out, child_env), out)
    assert "train: goes on from step" in spoken(out, "stderr").read_text()
    assert logged(out) == logged(together)
    first, second = weights(together), weights(out)
    assert all(torch.equal(first[name], second[name]) for name in first)
