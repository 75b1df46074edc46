"""A packed row gives each sequence what it would get alone: log-probabilities, gradients and label log-odds."""

from __future__ import annotations

import random
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from selfjudge.forward import RowForward, causal_lm
from selfjudge.head import label_logprobs, output_head, response_logps
from selfjudge.rows import Tree, pack

PACKED = ("llama", "qwen2", "qwen3", "gpt2", "phi", "granite", "cohere")
UNPACKED = {
    "mistral": "window of 16 tokens",
    "gemma2": "caps its attention",
    "gpt_oss": "attention sinks",
    "falcon": "does not take a custom attention",
    "mamba": "differs from its sequences alone",
}
LABELS = ((10, 11), (12,))


def ids(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(3, tiny.VOCABULARY) for _ in range(count)]


def trees(size: str) -> list[Tree]:
    """Small: batched under a mask. Large (above 256 tokens): branch by branch. Mixed: both in one row."""
    rng = random.Random(0)
    small = [Tree(ids(rng, 5), (ids(rng, 4), ids(rng, 1), ids(rng, 6))), Tree(ids(rng, 30), (ids(rng, 2),))]
    large = [Tree(ids(rng, 120), (ids(rng, 90), ids(rng, 1), ids(rng, 70)))]
    return {"small": small, "large": large, "mixed": [small[0], large[0], small[1]]}[size]


def plain(model: Any, sequence: list[int], start: int) -> tuple[Tensor, Tensor]:
    """(log-prob of the tokens from `start` on, (V,) log-probs after the last one), one unpadded sequence."""
    logps = torch.log_softmax(model(input_ids=torch.tensor([sequence]), use_cache=False).logits[0].float(), -1)
    wanted = torch.tensor(sequence[start:])
    return logps[start - 1 : -1].gather(1, wanted[:, None]).sum(), logps[-1]


def packed(model: Any, size: str, expected_reason: str | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(response log-probs, label log-probs, gradients of the former) from packed rows."""
    head = output_head(causal_lm(model))
    found: dict[int, tuple[Tensor, Tensor]] = {}
    with RowForward(model, longest=210) as forward:
        assert (forward.unpacked_because is None) == (expected_reason is None)
        assert expected_reason is None or expected_reason in str(forward.unpacked_because)
        for row in pack(trees(size), token_budget=300):
            hidden = forward(row)
            logps = response_logps(head, hidden, row)
            labels, _ = label_logprobs(head, hidden[[branch.span.stop - 1 for branch in row.branches]], LABELS)
            found |= {b.index: (logps[k], labels[k]) for k, b in enumerate(row.branches)}
        every = torch.stack([found[index][0] for index in range(len(found))])
        # within the context: gradient checkpointing computes the attention again
        return every, torch.stack([found[index][1] for index in range(len(found))]), gradients(model, every)


@torch.no_grad()
def packed_logps(model: Any) -> Tensor:
    head = output_head(causal_lm(model))
    with RowForward(model, longest=210) as forward:
        row = pack(trees("small"), token_budget=300)[0]
        return response_logps(head, forward(row), row)


def alone(model: Any, size: str) -> tuple[Tensor, Tensor, Tensor]:
    """The same, each sequence by itself."""
    found = [plain(model, [*t.prefix, *branch], len(t.prefix)) for t in trees(size) for branch in t.branches]
    logps = torch.stack([logp for logp, _ in found])
    labels = [torch.stack([last[list(group)].logsumexp(-1) for group in LABELS]) for _, last in found]
    return logps, torch.stack(labels), gradients(model, logps)


def gradients(model: Any, logps: Tensor) -> Tensor:
    """All gradients of a weighted sum of the log-probabilities, as one vector."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    target = (logps * torch.linspace(-1, 2, len(logps))).sum()
    found = torch.autograd.grad(target, weights, allow_unused=True, retain_graph=True)
    return torch.cat([g.flatten() for g in found if g is not None])


def assert_equal(model: Any, size: str, expected_reason: str | None = None) -> None:
    logps, labels, ours = packed(model, size, expected_reason)
    expected_logps, expected_labels, theirs = alone(model, size)
    torch.testing.assert_close(logps, expected_logps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(labels, expected_labels, rtol=1e-5, atol=1e-5)
    assert theirs.norm() > 1
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()


@pytest.mark.parametrize("size", ["small", "large", "mixed"])
@pytest.mark.parametrize("name", PACKED)
def test_packed_equals_alone(name: str, size: str):
    assert_equal(tiny.model(name), size)


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("name", UNPACKED)
def test_unpacked_equals_alone(name: str, size: str):
    assert_equal(tiny.model(name), size, UNPACKED[name])


@pytest.mark.parametrize("name", UNPACKED)
def test_padded_equals_one_by_one(name: str):
    """On a CPU no sequence is padded to another's length; where batches are worth it, padding changes nothing."""
    model = tiny.model(name)
    shapes: list[tuple[int, int]] = []
    model.base_model.register_forward_pre_hook(
        lambda _, __, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    row = pack(trees("small"), token_budget=300)[0]
    found: list[Tensor] = []
    with RowForward(model, longest=210) as forward, torch.no_grad():
        for at_once in (forward.paths_at_once, 3):
            shapes.clear()
            forward.paths_at_once = at_once
            found.append(forward(row))
            assert shapes[0][0] == at_once
    assert len(row.branches) > 3
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi", "qwen2", "mistral"])
def test_with_an_adapter(name: str):
    """The adapter takes part (B is not 0): its own gradients are compared, and switching it off changes the result."""
    model = tiny.with_lora(tiny.model(name))
    assert_equal(model, "mixed", UNPACKED.get(name))
    adapted, _, _ = packed(model, "small", UNPACKED.get(name))
    with model.disable_adapter():
        bare = packed_logps(model)
    assert (adapted - bare).abs().min() > 0.01


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi", "qwen2"])
def test_with_gradient_checkpointing(name: str, adapter: bool):
    model = tiny.with_lora(tiny.model(name)) if adapter else tiny.model(name)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    assert causal_lm(model).base_model.gradient_checkpointing
    assert_equal(model, "mixed")


def test_a_wide_window_needs_no_padding():
    """16 tokens of window hold a path of 16 whole, not one of 17."""
    model = tiny.model("mistral")
    assert RowForward(model, longest=16).unpacked_because is None
    assert "shorter than 17" in str(RowForward(model, longest=17).unpacked_because)
    rows = pack([Tree([5] * 3, ([6] * 13, [7] * 9))], 64)
    head = output_head(model)
    with RowForward(model, longest=16) as forward:
        found = response_logps(head, forward(rows[0]), rows[0])
    expected = [plain(model, [5] * 3 + branch, 3)[0] for branch in ([6] * 13, [7] * 9)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("former", ["sdpa", "eager"])
def test_the_former_attention_comes_back(former: str):
    """Also after an error inside; what `model(...)` computes is then what it was."""
    model = tiny.model("llama")
    model.set_attn_implementation(former)
    question = torch.tensor([[5, 6, 7]])
    before = model(question).logits
    beyond = pack([Tree([1], ([tiny.VOCABULARY],))], 8)[0]
    with pytest.raises(IndexError), RowForward(model, longest=8) as forward:
        forward(beyond)
    assert model.config._attn_implementation == former
    torch.testing.assert_close(model(question).logits, before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["falcon", "gpt_oss", "mamba"])
def test_a_failed_trial_leaves_the_model_as_it_was(name: str):
    model = tiny.model(name).train()
    former = model.config._attn_implementation
    assert RowForward(model, longest=8).unpacked_because
    assert model.config._attn_implementation == former
    assert model.training
