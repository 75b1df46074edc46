"""The shipped models are what their claims say."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from selfjudge.lab import MODEL_NAMES, model_path
from selfjudge.lab.build import RECIPES, weights_hash
from selfjudge.lab.measure import MAX_NEW_TOKENS, Figures, answers, measure
from selfjudge.lab.world import questions_of

TOLERANCE = 0.03
"""Of shares of 250 questions: the samples' noise on a machine that rounds otherwise is about 0.01."""


class Shipped(NamedTuple):
    name: str
    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    claims: dict[str, Any]
    measured: Figures


@pytest.fixture(scope="module", params=MODEL_NAMES)
def shipped(request: pytest.FixtureRequest) -> Shipped:
    path = model_path(request.param)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    claims = json.loads((path / "claims.json").read_text())
    return Shipped(request.param, model, tokenizer, claims, measure(model, tokenizer, questions_of("dev")))


def test_figures_are_as_claimed(shipped: Shipped) -> None:
    for figure, shares in shipped.claims["figures"].items():
        assert shipped.measured[figure]["all"] == pytest.approx(shares["all"], abs=TOLERANCE), figure


def test_weights_and_recipe_are_as_claimed(shipped: Shipped) -> None:
    assert weights_hash(model_path(shipped.name)) == shipped.claims["weights_sha256"]
    assert (shipped.name, RECIPES[shipped.name].steps) == (shipped.claims["model"], shipped.claims["steps"])


def test_the_generator_has_much_to_learn(shipped: Shipped) -> None:
    assert shipped.measured["sampled"]["all"] < 0.55
    assert shipped.measured["right_within_8"]["all"] >= 0.9


def test_verdicts_take_all_probability(shipped: Shipped) -> None:
    assert min(shipped.measured["label_mass"].values()) > 0.99


def test_lab_judges_well_and_lab_weak_badly(shipped: Shipped) -> None:
    if shipped.name == "lab":
        assert min(shipped.measured["judge_right_over_misconception"].values()) >= 0.97
        assert shipped.measured["judge_right_over_other"]["all"] >= 0.9
    else:
        assert 0.72 <= shipped.measured["judge_right_over_wrong"]["all"] <= 0.88


def test_answers_end_by_themselves(shipped: Shipped) -> None:
    told = answers(shipped.model, shipped.tokenizer, questions_of("dev")[:20])
    assert max(len(shipped.tokenizer.tokenize(text)) for (text,) in told) < MAX_NEW_TOKENS - 1


def test_checkpoints_are_small() -> None:
    sizes = [sum(file.stat().st_size for file in model_path(name).iterdir()) for name in MODEL_NAMES]
    assert max(sizes) <= 1.5e6
    assert sum(sizes) <= 3e6
