"""The policy: log-probabilities and losses of preferences against the plain model. Training itself: test_train.py."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from selfjudge.losses import LOSSES, all_pairs
from selfjudge.trainer import Objective, Policy, Preference, collate, disable_dropout, without_adapter
from selfjudge.training_figures import means, of_prompt


def preferences() -> list[Preference]:
    """Six prompts with 2, 3, 4, 2, 3, 4 responses; reference log-probs that are nobody's."""
    rng = random.Random(0)

    def ids(most: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, tiny.VOCABULARY) for _ in range(rng.randint(1, most)))

    found: list[Preference] = []
    for index in range(6):
        count = 2 + index % 3
        strengths = tuple(sorted((rng.gauss(0, 2) for _ in range(count)), reverse=True))
        refs = tuple(-rng.uniform(5, 60) for _ in range(count))
        found.append(Preference(f"p{index}", ids(20), tuple(ids(12) for _ in range(count)), strengths, refs))
    return found


def policy(model: Any, loss: str = "dpo", token_budget: int = 200, **options: float) -> Policy:
    return Policy(model, 40, Objective(loss, options or {"beta": 0.1}, token_budget))


def plain_logp(model: Any, prompt: tuple[int, ...], response: tuple[int, ...]) -> float:
    logps = torch.log_softmax(model(torch.tensor([prompt + response])).logits[0], -1)
    return sum(logps[len(prompt) - 1 + i, token].item() for i, token in enumerate(response))


@pytest.fixture
def model() -> Iterator[Any]:
    with torch.no_grad():
        yield tiny.model("llama")


@pytest.mark.parametrize("token_budget", [1, 60, 10_000])
def test_logps_are_those_of_each_response_alone(model: Any, token_budget: int):
    wanted = preferences()
    expected = [[plain_logp(model, p.prompt_ids, r) for r in p.response_ids] for p in wanted]
    own = policy(model, token_budget=token_budget)
    with own.forward:
        found = own.logps(wanted)
    assert [values.tolist() for values in found] == [pytest.approx(row, abs=1e-4) for row in expected]
    assert all(values.dtype == torch.float32 for values in found)


def test_reference_fills_in_the_models_logps(model: Any):
    own = policy(model)
    with own.forward:
        filled = list(own.reference(preferences(), at_once=4))
        expected = own.logps(preferences())
    assert [p.ref_logps for p in filled] == [pytest.approx(tuple(v.tolist()), abs=1e-4) for v in expected]
    assert [replace(p, ref_logps=()) for p in filled] == [replace(p, ref_logps=()) for p in preferences()]


@pytest.mark.parametrize(
    ("loss", "options"),
    [("dpo", {"beta": 0.2}), ("soft-bce", {"beta": 0.2}), ("azar", {"tau": 0.2}), ("irepo", {"beta": 0.2, "z_max": 2})],
)
def test_loss_is_the_mean_over_a_prompts_pairs(model: Any, loss: str, options: dict[str, float]):
    """All pairs i < j of the K responses, as strengths fall; each prompt counts once whatever its K."""
    own = policy(model, loss, **options)
    with own.forward:
        losses, figures = own.losses(preferences())
        logps = own.logps(preferences())
    for index, (preference, values) in enumerate(zip(preferences(), logps, strict=True)):
        ref, z = torch.tensor(preference.ref_logps), torch.tensor(preference.strengths)
        count = len(values)
        pairs = [
            LOSSES[loss](values[i], values[j], ref[i], ref[j], z[i] - z[j], **options).item()
            for i in range(count)
            for j in range(i + 1, count)
        ]
        assert losses[index].item() == pytest.approx(sum(pairs) / len(pairs), rel=1e-4)
        change = (values - ref).tolist()
        right = [change[i] > change[j] for i in range(count) for j in range(i + 1, count)]
        assert figures["accuracy"][index].item() == pytest.approx(sum(right) / len(right))
    assert all(len(values) == 6 for values in figures.values())


def test_at_the_reference_by_hand(model: Any):
    """Two responses 3 nats apart: log 2 for dpo; at z_max 2 the target 3 is clipped: 4."""
    pair = replace(preferences()[0], strengths=(1.0, -2.0))
    for loss, options, expected in (("dpo", {"beta": 0.1}, math.log(2)), ("irepo", {"beta": 0.1, "z_max": 2.0}, 4.0)):
        own = policy(model, loss, **options)
        with own.forward:
            losses, figures = own.losses(list(own.reference([pair], at_once=1)))
        assert losses.item() == pytest.approx(expected, abs=1e-4)
        assert figures["target"].item() == pytest.approx(3)
        assert figures["log_ratio_difference"].item() == pytest.approx(0, abs=1e-4)


def test_autocast_computes_in_bfloat16_and_sums_in_float32(model: Any):
    exact, rounded = policy(model), Policy(model, 40, Objective("dpo", {"beta": 0.1}, 200, torch.bfloat16))
    with exact.forward:
        expected = torch.cat(exact.logps(preferences()))
    with rounded.forward:
        found = torch.cat(rounded.logps(preferences()))
    assert found.dtype == torch.float32
    assert 1e-4 < (found - expected).abs().max() < 0.1 * expected.abs().max()


def test_collate_leaves_everything_as_it_is():
    assert collate(preferences()) == {"preferences": preferences()}


def test_without_adapter():
    model = tiny.with_lora(tiny.model("llama"))
    bare = tiny.model("llama")
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        with without_adapter(model):
            torch.testing.assert_close(model(ids).logits, bare(ids).logits)
        assert (model(ids).logits - bare(ids).logits).abs().max() > 0.01
    with pytest.raises(TypeError, match="only a model with an adapter"), without_adapter(bare):
        pass


@pytest.mark.parametrize("name", ["gpt2-dropout", "opt-dropout"])
def test_disable_dropout(name: str):
    """In training mode two passes differ before, and agree after."""
    model = tiny.model(name).train()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    assert not torch.equal(model(ids).logits, model(ids).logits)
    disable_dropout(model)
    assert torch.equal(model(ids).logits, model(ids).logits)
    assert all(module.p == 0 for module in model.modules() if isinstance(module, nn.Dropout))


def moved(strengths: tuple[float, ...], changes: list[float], z_max: float | None = None) -> dict[str, Tensor]:
    """The figures of a prompt whose responses all had -10 under the reference."""
    ref = torch.full((len(changes),), -10.0)
    figures = of_prompt(all_pairs(torch.tensor(strengths)), ref + torch.tensor(changes), ref, z_max)
    return {name: value[None] for name, value in figures.items()}


def test_figures_by_hand():
    """Strengths 3, 1, 0 and changes 1, -1, 0.

    Pairs (0,1), (0,2), (1,2): z = 2, 3, 1 and D = 2, 1, -1. Clipped at 1.5: two of three. Chosen log-probs -9, -9, -11,
    rejected -11, -10, -10; forward KL -(1 - 1 + 0) / 3 = 0. Means 2 and 2/3; sum of products 4 + 3 - 1 - 3 * 4/3 = 2,
    of squares 2 and 6 - 4/3 = 14/3: correlation 2 / sqrt(28/3) = 0.6547.
    """
    found = means([moved((3.0, 1.0, 0.0), [1.0, -1.0, 0.0], z_max=1.5)])
    assert found == pytest.approx(
        {
            "accuracy": 2 / 3,
            "log_ratio_difference": 2 / 3,
            "target": 2.0,
            "chosen_change": (1 + 1 - 1) / 3,
            "rejected_change": (-1 + 0 + 0) / 3,
            "chosen_logp": -29 / 3,
            "rejected_logp": -31 / 3,
            "forward_kl": 0.0,
            "clipped_share": 2 / 3,
            "target_correlation": 2 / math.sqrt(28 / 3),
        },
        abs=1e-6,
    )


def test_correlation_is_over_the_pairs_of_all_prompts():
    """z = 1, 2, 4 and D = 2, 1, 3 in three parts: products 16 - 3 * 7/3 * 2 = 2, squares 21 - 49/3 = 14/3 and 2."""
    parts = [moved((z, 0.0), [d, 0.0]) for z, d in ((1.0, 2.0), (2.0, 1.0), (4.0, 3.0))]
    assert means(parts)["target_correlation"] == pytest.approx(2 / math.sqrt(28 / 3), abs=1e-6)
    assert "clipped_share" not in means(parts)


@pytest.mark.parametrize(
    "parts",
    [
        [((1.0, 0.0), [1.0, 0.0]), ((3.0, 0.0), [2.0, 0.0])],  # two pairs
        [((1.0, 0.0), [d, 0.0]) for d in (1.0, 2.0, 3.0)],  # one z
        [((z, 0.0), [0.0, 0.0]) for z in (1.0, 2.0, 3.0)],  # one D, as at the first step
    ],
    ids=["few", "same-target", "same-difference"],
)
def test_no_correlation(parts: list[tuple[tuple[float, ...], list[float]]]):
    assert math.isnan(means([moved(*part) for part in parts])["target_correlation"])


def test_forward_kl_is_what_the_name_says():
    """Responses drawn from ref = (0.5, 0.5), pi = (0.8, 0.2): KL(ref || pi) = 0.5 log(0.5/0.8) + 0.5 log(0.5/0.2)."""
    ref, pi = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.8, 0.2]).log()
    figures = of_prompt(all_pairs(torch.tensor([1.0, 0.0])), pi, ref, None)
    assert figures["forward_kl"].item() == pytest.approx(0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2))
