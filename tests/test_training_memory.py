"""What training will need, against what autograd really keeps; and the trial that finds what fits."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from test_trainer import policy, preferences

from selfjudge.errors import ModelError
from selfjudge.head import CHUNK_ELEMENTS
from selfjudge.trainer import Objective, Policy
from selfjudge.training_memory import GIB, TrainingMemory, _saved_bytes, training_memory, tried_micro_batch


def test_arithmetic():
    """Weights 4, gradients 1, optimiser 2, 0.5 per pass and a thousandth per token, in GiB."""
    memory = TrainingMemory(4 * GIB, GIB, 2 * GIB, 0.5 * GIB, GIB / 1000)
    assert memory.fixed == 3.5 * GIB
    assert memory.peak(2000) == pytest.approx(9.5 * GIB)
    assert memory.tokens(5.5 * GIB) == 2000
    assert memory.tokens(3 * GIB) == 0
    text = "9.50 GiB (weights 4.00, gradients and optimiser 3.00, 2.50 for 2,000 tokens at a time)"
    assert memory.describe(2000) == text


@pytest.mark.parametrize("adapter", [False, True])
def test_parameters(adapter: bool):
    model = tiny.with_lora(tiny.model("llama")) if adapter else tiny.model("llama")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    own = policy(model)
    with own.forward:
        memory = training_memory(own, preferences()[1])
    assert memory.weights == 4 * sum(p.numel() for p in model.parameters())
    assert memory.gradients == 4 * trained
    assert memory.optimizer == 8 * trained


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
def test_other_batches_are_predicted(name: str, adapter: bool, autocast: torch.dtype | None):
    """From one prompt of 3 responses to a batch of six other prompts; where nothing is packed, to six of its kind."""
    model = tiny.with_lora(tiny.model(name)) if adapter else tiny.model(name)
    own = Policy(model, 40, Objective("dpo", {"beta": 0.1}, 4000, autocast))
    one = preferences()[1]
    batch = [one] * 6 if own.forward.unpacked_because else preferences()
    with own.forward:
        memory = training_memory(own, one)
        saved = _saved_bytes(own, batch)
    logits = 8 * CHUNK_ELEMENTS
    tokens = sum(preference.tree.num_tokens for preference in batch)
    predicted = memory.per_pass - logits + tokens * memory.per_token
    assert predicted == pytest.approx(saved, rel=0.2)


def test_checkpointing_keeps_less():
    """Per token one of two layers, and the inputs of both."""
    model = tiny.model("llama")
    own = policy(model)
    with own.forward:
        whole = training_memory(own, preferences()[1])
        model.gradient_checkpointing_enable({"use_reentrant": False})
        less = training_memory(own, preferences()[1])
    assert less.per_token == pytest.approx(whole.per_token / 2 + 2 * 32 * 4)


def out_of_memory_above(own: Policy, prompts: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes the policy's losses fail as a GPU does for more than `prompts` prompts; notes the sizes tried."""
    losses, tried = own.losses, list[int]()

    def limited(batch: Any) -> Any:
        tried.append(len(batch))
        if len(batch) > prompts:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return losses(batch)

    monkeypatch.setattr(own, "losses", limited)
    return tried


def test_the_trial_goes_down_until_it_fits(monkeypatch: pytest.MonkeyPatch):
    own, said = policy(tiny.model("llama")), list[str]()
    tried = out_of_memory_above(own, 2, monkeypatch)
    with own.forward:
        assert tried_micro_batch(own, preferences()[:4], [4, 2, 1], 1000, said.append) == 2
    assert tried == [4, 2]
    assert said == ["train: out of memory with 4 prompts in one backward pass"]
    assert all(p.grad is None for p in own.model.parameters())


def test_a_single_prompt_that_does_not_fit(monkeypatch: pytest.MonkeyPatch):
    own = policy(tiny.model("llama"))
    out_of_memory_above(own, 0, monkeypatch)
    with own.forward, pytest.raises(ModelError, match=r"one prompt with its responses .* --gradient-checkpointing"):
        tried_micro_batch(own, preferences()[:2], [2, 1], 1000, lambda _: None)


def test_other_errors_pass(monkeypatch: pytest.MonkeyPatch):
    own = policy(tiny.model("llama"))
    monkeypatch.setattr(own, "losses", lambda _: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with own.forward, pytest.raises(RuntimeError, match="shapes differ"):
        tried_micro_batch(own, preferences()[:1], [1], 1000, lambda _: None)
