"""The losses: hand-solved values, their gradients and minima, and equality with TRL's DPOTrainer."""

import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from selfjudge.losses import LOSSES, all_pairs, azar, dpo, irepo, log_ratio_difference, loss_options, soft_bce
from selfjudge.preferences import Preference
from selfjudge.trainer import Objective, Policy

BETA = 0.5
# log pi(w) - log ref(w) = 2 and log pi(l) - log ref(l) = -1: D = 3
D_IS_3 = tuple(torch.tensor([value]) for value in (-10.0, -21.0, -12.0, -20.0))
ZERO = torch.zeros(1)


def at(difference: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities with this D."""
    return (difference, ZERO, ZERO, ZERO)


def gradient(name: str, difference: float, target: float) -> float:
    """dL/dD with the default option of each test."""
    variable = torch.tensor([difference], requires_grad=True)
    option = "tau" if name == "azar" else "beta"
    LOSSES[name](*at(variable), torch.tensor([target]), **{option: BETA}).sum().backward()
    assert variable.grad is not None
    return variable.grad.item()


def in_float64(name: str, d: float, z: float) -> float:
    """The equations once more, for option 0.5 and z_max 4."""
    chance = 1 / (1 + math.exp(-z))
    return {
        "dpo": math.log1p(math.exp(-BETA * d)),
        "soft-bce": chance * math.log1p(math.exp(-BETA * d)) + (1 - chance) * math.log1p(math.exp(BETA * d)),
        "azar": (d - 1 / (2 * BETA)) ** 2,
        "irepo": (BETA * d - max(-4.0, min(4.0, z))) ** 2,
    }[name]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("z", [-7.0, -1.3, 0.4, 3.9, 4.1])
@pytest.mark.parametrize("d", [-9.0, -0.3, 0.0, 1.0, 6.0])
def test_values_and_gradients_are_those_of_finite_differences(name: str, d: float, z: float):
    """(L(D + h) - L(D - h)) / 2h in float64; z = -7 and 4.1 are clipped at 4. The sides move it with D and against."""
    h = 1e-5
    slope = (in_float64(name, d + h, z) - in_float64(name, d - h, z)) / (2 * h)
    logps = [torch.tensor([value], requires_grad=True) for value in (d + 0.5, 0.5, 0.25, 0.25)]
    loss = LOSSES[name](*logps, torch.tensor([z]), **{"tau" if name == "azar" else "beta": BETA})
    found = [gradient.item() for gradient in torch.autograd.grad(loss.sum(), logps)]
    assert loss.item() == pytest.approx(in_float64(name, d, z), rel=1e-5, abs=1e-6)
    assert found == pytest.approx([slope, -slope, -slope, slope], rel=1e-5, abs=1e-5)


def test_log_ratio_difference():
    """(-10 + 12) - (-21 + 20) = 3."""
    assert log_ratio_difference(*D_IS_3).item() == 3.0


def test_hand_solved_values():
    """beta D = 1.5 at beta 0.5; z = 2.

    dpo       log(1 + e^-1.5) = 0.201413
    soft-bce  p = sigmoid(2) = 0.880797: 0.201413 + (1 - p) 1.5 = 0.380218, as -log sigmoid(-x) = -log sigmoid(x) + x
    azar      tau 0.25: (3 - 2)^2 = 1
    irepo     (1.5 - 2)^2 = 0.25
    """
    z = torch.tensor([2.0])
    assert dpo(*D_IS_3, z, beta=0.5).item() == pytest.approx(0.201413, abs=1e-6)
    assert soft_bce(*D_IS_3, z, beta=0.5).item() == pytest.approx(0.380218, abs=1e-6)
    assert azar(*D_IS_3, z, tau=0.25).item() == pytest.approx(1.0)
    assert irepo(*D_IS_3, z, beta=0.5).item() == pytest.approx(0.25)


def test_at_the_reference():
    """D = 0: log 2 for dpo and soft-bce, 1/(2 tau)^2 = 1 for azar at tau 0.5, z^2 for irepo."""
    z = torch.tensor([1.5])
    assert dpo(*at(ZERO), z, beta=0.1).item() == pytest.approx(math.log(2))
    assert soft_bce(*at(ZERO), z, beta=0.1).item() == pytest.approx(math.log(2))
    assert azar(*at(ZERO), z, tau=0.5).item() == pytest.approx(1.0)
    assert irepo(*at(ZERO), z, beta=0.1).item() == pytest.approx(2.25)


@pytest.mark.parametrize("z", [0.5, 1.7, -2.0])
def test_first_gradient_of_irepo_is_4z_times_that_of_dpo(z: float):
    """At D = 0: -2 beta z against -beta / 2."""
    assert gradient("dpo", 0.0, z) == pytest.approx(-BETA / 2)
    assert gradient("irepo", 0.0, z) == pytest.approx(4 * z * gradient("dpo", 0.0, z))


@pytest.mark.parametrize("name", ["irepo", "soft-bce"])
@pytest.mark.parametrize("z", [0.5, 1.7, 3.9])
def test_minimum_is_at_z_over_beta(name: str, z: float):
    assert gradient(name, z / BETA, z) == pytest.approx(0.0, abs=1e-6)
    assert gradient(name, z / BETA - 0.1, z) < 0 < gradient(name, z / BETA + 0.1, z)


def test_minimum_of_azar_does_not_depend_on_the_target():
    """1 / (2 tau) = 1 at tau 0.5."""
    assert gradient("azar", 1.0, 0.3) == gradient("azar", 1.0, 3.0) == 0.0
    assert gradient("azar", 0.9, 3.0) < 0 < gradient("azar", 1.1, 3.0)


def test_irepo_clips_both_signs():
    """At D = 0, z = 9 and -9: 16 with the default of 4, 9 at z_max 3."""
    z = torch.tensor([9.0, -9.0])
    assert irepo(*at(ZERO), z, beta=1.0).tolist() == [16.0, 16.0]
    assert irepo(*at(ZERO), z, beta=1.0, z_max=3.0).tolist() == [9.0, 9.0]
    assert irepo(*at(torch.tensor([4.0])), z, beta=1.0).tolist() == [0.0, 64.0]


def test_soft_bce_of_a_certain_judge_is_dpo():
    certain = torch.tensor([40.0])
    assert soft_bce(*D_IS_3, certain, beta=0.3).item() == pytest.approx(dpo(*D_IS_3, certain, beta=0.3).item())


@pytest.mark.parametrize("name", LOSSES)
def test_one_float32_loss_per_pair(name: str):
    logps = torch.zeros(4, 2, dtype=torch.bfloat16)
    options = dict.fromkeys(loss_options(name), 0.5)
    losses = LOSSES[name](*logps, torch.ones(2, dtype=torch.bfloat16), **options)
    assert losses.shape == (2,)
    assert losses.dtype == torch.float32


def test_difference_is_taken_in_float32():
    """256.0 + 1.0 is not a bfloat16: 257 rounds to 256, so a difference in bfloat16 would be off by one."""
    logps = [torch.tensor([value], dtype=torch.bfloat16) for value in (256.0, 0.0, -1.0, 0.0)]
    assert log_ratio_difference(*logps).item() == 257.0


def test_options_of_each_loss():
    assert {name: loss_options(name) for name in LOSSES} == {
        "dpo": ("beta",),
        "soft-bce": ("beta",),
        "azar": ("tau",),
        "irepo": ("beta", "z_max"),
    }
    with pytest.raises(TypeError, match="z_max"):
        LOSSES["dpo"](*D_IS_3, ZERO, beta=0.1, z_max=3.0)


def test_all_pairs():
    """Strengths 3, 1, 1, 0: (0,1) 2, (0,2) 2, (0,3) 3, (1,3) 1, (2,3) 1; the equal pair (1,2) is left out; 5 pairs."""
    pairs = all_pairs(torch.tensor([3.0, 1.0, 1.0, 0.0]))
    assert list(zip(pairs.chosen.tolist(), pairs.rejected.tolist(), pairs.target.tolist(), strict=True)) == [
        (0, 1, 2.0),
        (0, 2, 2.0),
        (0, 3, 3.0),
        (1, 3, 1.0),
        (2, 3, 1.0),
    ]
    assert pairs.weight.tolist() == pytest.approx([0.2] * 5)


def test_all_pairs_of_two_and_of_equals():
    pair = all_pairs(torch.tensor([-1.0, 1.5]))
    assert [part.tolist() for part in pair] == [[1], [0], [2.5], [1.0]]
    assert [part.tolist() for part in all_pairs(torch.tensor([1.0, 1.0]))] == [[], [], [], []]


# TRL

ROWS = [
    {"prompt": "one two", "chosen": " three four five six", "rejected": " seven"},
    {"prompt": "six five four", "chosen": " one", "rejected": " two two three"},
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<end>", "one", "two", "three", "four", "five", "six", "seven"]
    words_to_ids = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    words_to_ids.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words_to_ids, pad_token="<pad>", eos_token="<end>")


def tiny_llama(seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=9,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            initializer_range=1.0,  # far from uniform, so that policy and reference disagree
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
    ).eval()


def response_logp(model: Any, prompt_ids: list[int], response_ids: list[int]) -> Tensor:
    """Sum of log p(token | all before) over the response, one unpadded sequence at a time."""
    logits = model(torch.tensor([prompt_ids + response_ids])).logits[0]
    logps = torch.log_softmax(logits.float(), dim=-1)
    start = len(prompt_ids)
    return torch.stack([logps[start + i - 1, token] for i, token in enumerate(response_ids)]).sum()


def plain_logps(policy: Any, reference: Any, tokenizer: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Our four tensors of log-probabilities (num_pairs,) and the two of response lengths, end token included."""
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in ROWS]
    sides = [[tokenizer(row[side] + " <end>")["input_ids"] for row in ROWS] for side in ("chosen", "rejected")]
    logps = [
        torch.stack([response_logp(model, *ids) for ids in zip(prompts, side, strict=True)])
        for model in (policy, reference)
        for side in sides
    ]
    return logps, [torch.tensor([float(len(ids)) for ids in side]) for side in sides]


def trl_loss(policy: Any, reference: Any, tokenizer: Any, folder: Path, loss_type: str) -> Tensor:
    """The loss that TRL's trainer computes for one batch of all rows, beta 0.3."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = [row | {side: row[side] + " <end>" for side in ("chosen", "rejected")} for row in ROWS]
    config = DPOConfig(
        output_dir=str(folder),
        loss_type=[loss_type],
        beta=0.3,
        per_device_train_batch_size=len(ROWS),
        report_to="none",
        bf16=False,
        use_cpu=True,
        disable_dropout=True,
    )
    trainer = DPOTrainer(
        policy, ref_model=reference, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    batch = next(iter(trainer.get_train_dataloader()))
    return trainer.compute_loss(trainer.model, batch)


def test_dpo_equals_trl_sigmoid(tokenizer: Any, tmp_path: Path):
    """Value and gradient; the rows have 5, 2 and 2, 4 response tokens, so padding and masks are part of the test."""
    policy, reference = tiny_llama(0), tiny_llama(1)
    logps, _ = plain_logps(policy, reference, tokenizer)
    ours = dpo(*logps, torch.zeros(2), beta=0.3).mean()
    assert abs(ours.item() - math.log(2)) > 0.2
    (our_gradient,) = torch.autograd.grad(ours, [policy.lm_head.weight])
    theirs = trl_loss(policy, reference, tokenizer, tmp_path, "sigmoid")
    (their_gradient,) = torch.autograd.grad(theirs, [policy.lm_head.weight])
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    assert torch.allclose(our_gradient, their_gradient, atol=1e-5)


def test_azar_equals_trl_ipo_per_token_only(tokenizer: Any, tmp_path: Path):
    """TRL divides each log-ratio by its token count, end token included: azar agrees on such averages, not on sums."""
    policy, reference = tiny_llama(0), tiny_llama(1)
    logps, lengths = plain_logps(policy, reference, tokenizer)
    averages = [logp / length for logp, length in zip(logps, lengths * 2, strict=True)]
    theirs = trl_loss(policy, reference, tokenizer, tmp_path, "ipo").item()
    assert azar(*averages, torch.zeros(2), tau=0.3).mean().item() == pytest.approx(theirs, abs=1e-5)
    assert azar(*logps, torch.zeros(2), tau=0.3).mean().item() != pytest.approx(theirs, abs=0.1)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_a_batch_of_the_trainer_equals_trl(tokenizer: Any, tmp_path: Path, adapter: bool):
    """The policy's own loss, from packed rows: value and the gradient of every weight that is trained."""
    policy, reference = tiny_llama(0), tiny_llama(0 if adapter else 1)
    if adapter:
        policy = tiny.with_lora(policy)
    ends = [[tokenizer(row[side] + " <end>")["input_ids"] for side in ("chosen", "rejected")] for row in ROWS]
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in ROWS]
    given = [
        Preference(str(i), tuple(prompts[i]), tuple(map(tuple, sides)), (1.0, 0.0), ()) for i, sides in enumerate(ends)
    ]
    objective = Objective("dpo", {"beta": 0.3}, 200)
    old, new = Policy(reference, 40, objective), Policy(policy, 40, objective)
    with old.forward:
        preferences = list(old.reference(given, at_once=2))
    with new.forward:
        ours = new.losses(preferences)[0].mean()
        trained = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
        gradients = torch.autograd.grad(ours, list(trained.values()))
    theirs = trl_loss(policy, reference, tokenizer, tmp_path, "sigmoid")
    expected = torch.autograd.grad(theirs, list(trained.values()))
    assert abs(ours.item() - math.log(2)) > 0.01
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    for name, own, other in zip(trained, gradients, expected, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
