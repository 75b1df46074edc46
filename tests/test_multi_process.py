"""Training in two processes on a CPU: the steps of one process, one writer, an exact resume."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from selfjudge.api import train
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
    "epochs": "2",
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


def launched(model: str, file: str, out: Path, env: dict[str, str], **options: str) -> subprocess.CompletedProcess[str]:
    """The command in two processes, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    flags = [word for name, value in (OPTIONS | options).items() for word in (f"--{name.replace('_', '-')}", value)]
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port]
    command = [*launcher, "-m", "selfjudge.cli", "train", "--model", model, "--input", file, "--out", str(out), *flags]
    own = env | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run([sys.executable, *command], env=own, capture_output=True, text=True, timeout=120, check=False)


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
        assert own == pytest.approx(other, rel=1e-4, abs=1e-5)


def test_two_processes_train_as_one(model_folder: ModelFolder, tmp_path: Path, child_env: dict[str, str]):
    """Every logged figure of every step, the validation and the weights; then killed in the middle, and resumed."""
    needs_gloo()
    file, model = selected(tmp_path / "selected.jsonl"), model_folder("llama")
    alone, together = tmp_path / "alone", tmp_path / "together"
    values = {name: value for name, value in OPTIONS.items()}
    summary = train(model, file, str(alone), quiet=True, **values)
    done = launched(model, file, together, child_env, save_steps="3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("last_loss") == 1
    assert_close(logged(together), logged(alone))
    assert summary["steps"] > 6
    meta = read_meta(together / "training.jsonl")
    assert meta is not None
    assert meta["summary"] == pytest.approx(summary, rel=1e-4, abs=1e-5)
    first, second = weights(alone), weights(together)
    assert max((first[name] - second[name]).abs().max().item() for name in first) < 1e-5
