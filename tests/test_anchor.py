"""The anchor: nothing to pull at the own verdicts, a pull back from anywhere else, each verdict once a step."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import done, summary
from models import make_model, make_prompts

from selfjudge.anchor import Anchor, Verdict, VerdictFile, anchor_loss
from selfjudge.api import train
from selfjudge.backends.prompts import Prompts
from selfjudge.errors import ConfigError
from selfjudge.forward import causal_lm
from selfjudge.inputs import read_scorable
from selfjudge.models import ModelSource, load_model, read_outline
from selfjudge.preferences import on_disk
from selfjudge.rendering import Renderer
from selfjudge.steps.anchoring import add_verdicts, judged_with
from selfjudge.store import read_rows
from selfjudge.trainer import Objective, Policy, PreferenceTrainer

NUMBER = 12
OPTIONS: dict[str, Any] = {
    "device": "cpu",
    "quiet": True,
    "batch_size": 4,
    "validation": 0,
    "learning_rate": 1e-3,
    "lora_rank": 0,
    "anchor": 6,
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its own samples, scores and pairs."""
    folder = tmp_path_factory.mktemp("anchor")
    model, prompts = make_model(folder / "model"), make_prompts(folder / "prompts.jsonl", NUMBER)
    files = {name: folder / f"{name}.jsonl" for name in ("samples", "scored", "selected")}
    drawn = ("--max-new-tokens", 6, "--temperature", 1)
    done("sample", "--quiet", "--model", model, "--prompts", prompts, "--out", files["samples"], *drawn)
    done("judge", "--quiet", "--model", model, "--input", files["samples"], "--out", files["scored"])
    done("select", "--quiet", "--input", files["scored"], "--out", files["selected"], "--keep-unfinished")
    return folder


@pytest.fixture
def verdicts(here: Path, tmp_path: Path) -> Generator[VerdictFile]:
    source = ModelSource(str(here / "model"), "cpu")
    _, tokenizer = load_model(source)
    outline = read_outline(source, tokenizer)
    prompts = Prompts(Renderer(tokenizer, source.name), source.name, outline.num_embeddings, outline.context_length)
    scored = str(here / "scored.jsonl")
    with read_scorable(scored, ("responses", "scores")) as rows, on_disk(tmp_path, VerdictFile) as found:
        add_verdicts(rows, judged_with(scored, source.name), prompts, found)
        yield found


@pytest.fixture
def policy(here: Path, verdicts: VerdictFile) -> Generator[Policy]:
    model, _ = load_model(ModelSource(str(here / "model"), "cpu"), trainable=True)
    policy = Policy(model, verdicts.longest, Objective("dpo", {"beta": 0.1}, token_budget=2048))
    with policy.forward:
        yield policy


def gradient_norm(policy: Policy, loss: torch.Tensor) -> float:
    policy.model.zero_grad()
    loss.backward()
    grads = [p.grad for p in policy.model.parameters() if p.grad is not None]
    return math.sqrt(sum(grad.square().sum().item() for grad in grads))


def push(policy: Policy) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in causal_lm(policy.model).parameters():
            parameter += 0.05 * torch.randn_like(parameter)


def test_every_distinct_scored_response_is_a_verdict(here: Path, verdicts: VerdictFile) -> None:
    distinct = [len({r["text"] for r in row["responses"]}) for row in read_rows(here / "scored.jsonl")]
    assert len(verdicts) == sum(distinct) > NUMBER
    assert verdicts.longest == max(len(verdicts[i].ids) for i in range(len(verdicts)))


def test_at_the_own_verdicts_it_is_zero_and_pulls_nowhere(policy: Policy, verdicts: VerdictFile) -> None:
    """And once the model was pushed away it pulls: 100,000 times as much, and back."""
    batch = [verdicts[index] for index in range(len(verdicts))]
    losses = anchor_loss(policy, batch)
    assert losses.shape == (len(batch),)
    assert losses.abs().max().item() < 1e-6
    at_rest = gradient_norm(policy, losses.mean())
    push(policy)
    away = anchor_loss(policy, batch).mean()
    assert away.item() > 1e-3
    assert at_rest < 1e-5 * gradient_norm(policy, away)
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.05)
    for _ in range(30):
        gradient_norm(policy, anchor_loss(policy, batch).mean())
        optimizer.step()
    assert anchor_loss(policy, batch).mean().item() < 0.5 * away.item()


def test_by_hand(policy: Policy, verdicts: VerdictFile) -> None:
    """The divergence of p from t = 1/2 is -log(2) - (log p + log(1 - p)) / 2, with p the model's own share of Yes."""
    one = verdicts[0]
    p = 1 / (1 + math.exp(-one.log_odds))
    (found,) = anchor_loss(policy, [one._replace(log_odds=0.0)]).tolist()
    assert found == pytest.approx(-math.log(2) - (math.log(p) + math.log(1 - p)) / 2, abs=1e-5)
    assert anchor_loss(policy, []).shape == (0,)


def test_labels_of_several_kinds_keep_their_places(policy: Policy, verdicts: VerdictFile) -> None:
    """Yes and No exchanged are the negative log-odds."""
    plain = [verdicts[index] for index in range(4)]
    mixed = [Verdict(v.ids, v.label_ids[::-1], -v.log_odds) if i % 2 else v for i, v in enumerate(plain)]
    push(policy)
    assert anchor_loss(policy, mixed).tolist() == pytest.approx(anchor_loss(policy, plain).tolist(), abs=1e-6)


def test_a_step_has_each_verdict_once_in_whatever_parts(policy: Policy, verdicts: VerdictFile) -> None:
    anchor = Anchor(policy, verdicts, size=7, weight=1.0, seed=3)
    assert anchor.batch(5) == Anchor(policy, verdicts, size=7, weight=2.0, seed=3).batch(5)
    assert anchor.batch(5) != anchor.batch(6)
    assert len(set(anchor.batch(5))) == 7
    push(policy)
    whole = anchor.losses(5, 0, 4, 4).tolist()
    parts = [value for start in range(4) for value in anchor.losses(5, start, start + 1, 4).tolist()]
    assert len(whole) == 7
    assert parts == pytest.approx(whole, abs=1e-5)
    assert Anchor(policy, verdicts, size=9999, weight=1.0, seed=3).size == len(verdicts)


# In training


def trained(here: Path, out: Path, **changes: Any) -> list[dict[str, Any]]:
    options = OPTIONS | {"anchor_input": str(here / "scored.jsonl")} | changes
    train(str(here / "model"), str(here / "selected.jsonl"), str(out), **options)
    return [row for row in read_rows(out / "training.jsonl") if row["kind"] == "step"]


def weights(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


def test_it_is_logged_and_starts_at_zero(here: Path, tmp_path: Path) -> None:
    steps = trained(here, tmp_path / "with", learning_rate=0.01, epochs=3)
    assert steps[0]["anchor"] == pytest.approx(0, abs=1e-6)
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert summary(tmp_path / "with" / "training.jsonl")["anchor"] == steps[-1]["anchor"] > 1e-5
    firm = trained(here, tmp_path / "firm", learning_rate=0.01, epochs=3, anchor_weight=30.0)
    assert firm[-1]["anchor"] < 0.7 * steps[-1]["anchor"]


def test_the_loss_holds_the_weighted_mean(here: Path, tmp_path: Path) -> None:
    """At the second step both runs have the same weights (the anchor pulls nowhere before): losses differ by it."""
    with_it, without = trained(here, tmp_path / "with"), trained(here, tmp_path / "not", anchor=0, anchor_input=None)
    assert with_it[1]["anchor"] > 0
    assert with_it[1]["loss"] - without[1]["loss"] == pytest.approx(with_it[1]["anchor"], rel=0.05, abs=2e-6)


def test_neither_micro_batches_nor_a_restart_change_it(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after step 4 with checkpoints every 2: weights equal bit for bit."""
    options: dict[str, Any] = {"epochs": 2, "save_steps": 2, "micro_batch": 4}
    straight = trained(here, tmp_path / "straight", **options)
    small = trained(here, tmp_path / "small", **options | {"micro_batch": 1})
    assert [row["anchor"] for row in small] == pytest.approx([row["anchor"] for row in straight], rel=0.02, abs=1e-6)
    plain: Callable[..., None] = PreferenceTrainer.log

    def dies(self: PreferenceTrainer, logs: dict[str, float], *rest: Any) -> None:
        plain(self, logs, *rest)
        if self.state.global_step == 4 and "loss" in logs:
            raise KeyboardInterrupt

    monkeypatch.setattr(PreferenceTrainer, "log", dies)
    with pytest.raises(KeyboardInterrupt):
        trained(here, tmp_path / "resumed", **options)
    monkeypatch.undo()
    resumed = trained(here, tmp_path / "resumed", **options)
    assert [row["loss"] for row in resumed] == [row["loss"] for row in straight]
    assert weights(tmp_path / "resumed") == weights(tmp_path / "straight")


def test_verdicts_of_another_judge_are_refused(here: Path, tmp_path: Path) -> None:
    for name, options in (
        ("judge", ["--judge", "random"]),
        ("in_place", ["--model", here / "model", "--in-place", "--compare-separate", 0]),
        ("judge_model", ["--model", here / "model", "--judge-model", here / "model"]),
    ):
        out = tmp_path / f"{name}.jsonl"
        done("judge", "--quiet", "--input", here / "samples.jsonl", "--out", out, *options)
        with pytest.raises(ConfigError, match=rf"{name}.jsonl: judged with {name} .* which needs {name}"):
            trained(here, tmp_path / "out", anchor_input=str(out))
    with pytest.raises(ConfigError, match=r"selected.jsonl: not the finished output of selfjudge judge"):
        trained(here, tmp_path / "out", anchor_input=str(here / "selected.jsonl"))
    other = make_model(tmp_path / "other", "qwen2")
    with pytest.raises(ConfigError, match=r"judged with model .*the verdicts of the model in training itself"):
        train(
            str(other),
            str(here / "selected.jsonl"),
            str(tmp_path / "out2"),
            **OPTIONS | {"anchor_input": str(here / "scored.jsonl")},
        )


def test_in_the_loop(here: Path, tmp_path: Path) -> None:
    """The second round holds on to the verdicts of the model that the first one trained."""
    settings = ["--num-responses", 3, "--max-new-tokens", 6, "--keep-unfinished", "--holdout", 0.2, "--eval-samples", 2]
    run = tmp_path / "run"
    done(
        *("align", "--quiet", "--model", here / "model", "--prompts", here / "prompts.jsonl", "--out", run),
        *("--rounds", 2, "--anchor", 4, "--batch-size", 4, "--learning-rate", 0.01, *settings),
    )
    for number in (1, 2):
        first = next(read_rows(run / f"round-{number}" / "training.jsonl"))
        assert first["anchor"] == pytest.approx(0, abs=1e-6)
        meta = json.loads((run / f"round-{number}" / "training.meta.json").read_text())
        assert set(meta["inputs"]) == {"input", "anchor_input"}
