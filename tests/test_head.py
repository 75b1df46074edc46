"""Label and response log-probabilities against the model's own logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from selfjudge.errors import ModelError
from selfjudge.forward import RowForward
from selfjudge.head import Head, label_logprobs, output_head, response_logps
from selfjudge.rows import Tree, pack

GROUPS = ((10, 11), (12,), (13, 14, 15))
IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi", "granite", "cohere", "gemma2"])
def test_logits_are_the_models(name: str):
    """Bias (Phi), scale (Granite divides, Cohere multiplies) and soft-cap (Gemma 2) included."""
    model = tiny.model(name)
    head = output_head(model)
    special = {"phi": head.bias is not None, "granite": head.scale == 0.25, "cohere": head.scale == 0.25}
    assert special.get(name, head.bias is None and head.scale == 1)
    assert head.softcap == (3.0 if name == "gemma2" else None)
    with torch.no_grad():
        hidden = model.base_model(IDS).last_hidden_state[0]
        expected = model(IDS).logits[0]
        torch.testing.assert_close(head.logits(hidden), expected, rtol=1e-5, atol=1e-5)
        chosen = torch.tensor([3, 60])
        torch.testing.assert_close(head.logits(hidden, chosen), expected[:, chosen], rtol=1e-5, atol=1e-5)
        logprobs, mass = label_logprobs(head, hidden, GROUPS)
    full = torch.log_softmax(expected, -1)
    summed = torch.stack([full[:, list(group)].exp().sum(-1) for group in GROUPS], -1)
    torch.testing.assert_close(logprobs.exp(), summed, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(mass, summed.sum(-1), rtol=1e-4, atol=1e-6)


def test_label_mass_by_hand():
    """Weights 2, 1, 1, 4 of 8: the first label has 3/8 (tokens 0 and 1), the second 1/8; together 1/2."""
    head = Head(torch.tensor([2.0, 1.0, 1.0, 4.0]).log()[:, None], None, 1.0, None)
    logprobs, mass = label_logprobs(head, torch.ones(1, 1), ((0, 1), (2,)))
    assert logprobs[0].exp().tolist() == pytest.approx([3 / 8, 1 / 8])
    assert mass.tolist() == pytest.approx([1 / 2])


def test_without_mass_only_differences_mean_anything():
    model = tiny.model("llama")
    with torch.no_grad():
        hidden = model.base_model(IDS).last_hidden_state[0]
        normalised, _ = label_logprobs(output_head(model), hidden, GROUPS)
        loose, mass = label_logprobs(output_head(model), hidden, GROUPS, with_mass=False)
    torch.testing.assert_close(normalised.diff(), loose.diff(), rtol=1e-4, atol=1e-5)
    assert mass.isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_differences_are_computed_in_float32(dtype: torch.dtype):
    """Logits around 100 are multiples of 0.5 in bfloat16; the log-odds keep the digits that the hidden state has."""
    weight = torch.full((64, 32), 1.0) + torch.linspace(0, 0.3, 64)[:, None]
    head = Head(weight.to(dtype), None, 1.0, None)
    hidden = torch.rand(50, 32, generator=torch.Generator().manual_seed(0)).mul(6).to(dtype)
    logprobs, _ = label_logprobs(head, hidden, ((20,), (24,)))
    exact = Head(head.weight.float(), None, 1.0, None).logits(hidden.float())
    expected = exact[:, 20] - exact[:, 24]
    found = logprobs[:, 0] - logprobs[:, 1]
    assert exact.max() > 100
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert len(set(found.tolist())) == 50


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_label_mass_is_a_probability_in_any_precision(dtype: torch.dtype):
    """The labels have nearly all the probability; their float32 logits must not outgrow a sum of rounded ones."""
    weight = torch.full((64, 32), 0.5)
    weight[10:12] = 1.0
    hidden = torch.rand(200, 32, generator=torch.Generator().manual_seed(0)).mul(4).to(dtype)
    _, mass = label_logprobs(Head(weight.to(dtype), None, 1.0, None), hidden, ((10,), (11,)))
    assert mass.min() > 0.9
    assert mass.max() <= 1 + 1e-5


def test_bfloat16_model_against_float32_head():
    model = tiny.model("llama").to(torch.bfloat16)
    with torch.no_grad():
        hidden = model.base_model(IDS).last_hidden_state[0]
        found, _ = label_logprobs(output_head(model), hidden, GROUPS)
        exact = torch.log_softmax(hidden.float() @ model.lm_head.weight.float().T, -1)
    expected = torch.stack([exact[:, list(group)].logsumexp(-1) for group in GROUPS], -1)
    torch.testing.assert_close(found[:, 0] - found[:, 1], expected[:, 0] - expected[:, 1], rtol=2e-2, atol=1e-4)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    """2 positions of logits at a time, values and gradients."""
    model = tiny.model("llama")
    row = pack([Tree([5, 6, 7], ([8, 9, 10, 11], [12], [13, 14]))], 64)[0]
    results: list[tuple[torch.Tensor, torch.Tensor]] = []
    head = output_head(model)
    for elements in (1 << 25, 2 * tiny.VOCABULARY):
        monkeypatch.setattr("selfjudge.head.CHUNK_ELEMENTS", elements)
        with RowForward(model, 8) as forward:
            logps = response_logps(head, forward(row), row)
        results.append((logps, torch.autograd.grad(logps.square().sum(), model.lm_head.weight)[0]))
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(whole, chunked, rtol=1e-5, atol=1e-5)


def test_uniform_model_gives_minus_log_v_per_token():
    """All logits 0: three tokens, the first predicted at the end of the prefix, cost 3 log V."""
    row = pack([Tree([1, 2], ([3, 4, 5], [6]))], 64)[0]
    logps = response_logps(Head(torch.zeros(7, 4), None, 1.0, None), torch.rand(6, 4), row)
    assert logps.tolist() == pytest.approx([-3 * math.log(7), -math.log(7)])


def test_another_head_is_refused():
    model = tiny.model("llama")
    plain = model.lm_head.forward
    model.lm_head.forward = lambda hidden: plain(hidden).square()
    with pytest.raises(ModelError, match="more than a linear layer"):
        output_head(model)


def test_no_head():
    class Headless(nn.Module):
        def get_output_embeddings(self) -> Any:
            return None

    with pytest.raises(ModelError, match="not a causal language model"):
        output_head(Headless())  # pyright: ignore[reportArgumentType]
