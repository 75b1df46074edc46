"""What the attention function refuses. What it computes is in test_forward.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny
import torch
from torch import nn

from selfjudge.attention import _by_branch, _merged, attend, segments, tree_attention, unsupported
from selfjudge.errors import ModelError
from selfjudge.rows import Tree, pack

ROW = pack([Tree([1, 2], ([3], [4, 5]))], 64)[0]
QKV = (torch.ones(1, 2, 5, 4), torch.ones(1, 2, 5, 4), torch.ones(1, 2, 5, 4))


def parts() -> dict[str, object]:
    return {"segments": segments(ROW, torch.device("cpu"), torch.float32)}


def test_missing_segments():
    with pytest.raises(ModelError, match="Identity does not pass the row's segments"):
        attend(nn.Identity(), *QKV, None)
    with tree_attention(model := tiny.model("llama")), pytest.raises(ModelError, match="LlamaAttention"):
        model(torch.tensor([[1, 2, 3]]))


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        ({"dropout": 0.1}, "no attention dropout"),
        ({"softcap": 30.0}, "caps its attention logits"),
        ({"s_aux": torch.ones(2)}, "attention sinks"),
    ],
)
def test_what_it_does_not_compute(extra: dict[str, object], problem: str):
    with pytest.raises(ModelError, match=problem):
        attend(nn.Identity(), *QKV, None, **parts(), **extra)  # pyright: ignore


def test_a_mask_of_the_model_itself_is_refused():
    with pytest.raises(ModelError, match="segments"):
        attend(nn.Identity(), *QKV, torch.zeros(1, 1, 5, 5), **parts())  # pyright: ignore


def test_who_sees_whom():
    """Values 1..5 for tokens p p a b b, all logits equal: each token gets the mean over what it sees.

    p: 1; p: (1+2)/2; a: (1+2+3)/3; b: (1+2+4)/3; b: (1+2+4+5)/4.
    """
    values = torch.arange(1.0, 6.0)[None, None, :, None].expand(1, 1, 5, 4)
    flat = torch.zeros(1, 1, 5, 4)
    found, _ = attend(nn.Identity(), flat, flat, values, None, **parts())  # pyright: ignore
    assert found[0, :, 0, 0].tolist() == pytest.approx([1, 1.5, 2, 7 / 3, 3])


SPANS = [slice(0, 9), slice(9, 10), slice(10, 30), slice(30, 37)]


def tree_inputs(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Query, key, value and the gradient of the output, (1, H, N, D), strided as models give them."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(1, SPANS[-1].stop, 3, 16, generator=generator).to(dtype).transpose(1, 2) for _ in range(4)]
    return *(part.requires_grad_() for part in made[:3]), made[3]


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    """The definition: one softmax over the tokens of the prefix and of the own branch, up to the token itself."""
    branch = torch.cat([torch.full((span.stop - span.start,), i) for i, span in enumerate(SPANS)])
    seen = ((branch[:, None] == branch) | (branch == 0)) & torch.ones(len(branch), len(branch), dtype=torch.bool).tril()
    logits = (query @ key.transpose(2, 3) * scaling).masked_fill(~seen, -torch.inf)
    return logits.softmax(-1) @ value


@pytest.mark.parametrize("attention", [_merged, _by_branch])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_large_trees(attention: Callable[..., torch.Tensor], dtype: torch.dtype, tolerance: float):
    """Values and gradients of both ways are those of the definition in float64."""
    *inputs, gradient = tree_inputs(dtype)
    exact = [part.detach().double().requires_grad_() for part in inputs]
    found, expected = attention(*inputs, SPANS, 0.3), dense(*exact, 0.3)
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    found.backward(gradient)
    expected.backward(gradient.double())
    for part, true in zip(inputs, exact, strict=True):
        torch.testing.assert_close(part.grad.double(), true.grad, rtol=tolerance, atol=tolerance)


def test_unsupported():
    assert unsupported(tiny.model("llama").config, 1 << 20) is None
    assert unsupported(tiny.model("qwen2").config, 1 << 20) is None
    assert "caps its attention logits" in str(unsupported(tiny.model("gemma2").config, 4))
    assert "linear_attention layers" in str(
        unsupported(tiny.model("llama", layer_types=["linear_attention", "full_attention"]).config, 4)
    )
