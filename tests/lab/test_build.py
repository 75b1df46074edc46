"""Rebuilding a lab model: tokenizer, rows, labels, optimiser, training."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from selfjudge.lab import MODEL_NAMES, model_path
from selfjudge.lab.build import RECIPES, first_rows_hash, save, weights_hash
from selfjudge.lab.muon import Muon, orthogonalise
from selfjudge.lab.rows import Row, ask_judge, ask_model, candidate, draw_rows, train_tokenizer
from selfjudge.lab.train import NO_LABEL, Recipe, encode, pretrain
from selfjudge.lab.world import Question, all_questions, questions_of
from selfjudge.questions import load_questions
from selfjudge.records import Message


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer()


@pytest.fixture(scope="module")
def addition() -> Question:
    return next(question for question in all_questions() if question.text == "What is 59 + 8?")


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_rebuilt_tokenizer_is_the_shipped_one(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    shipped = PreTrainedTokenizerFast.from_pretrained(model_path(name))
    rebuilt, kept = (json.loads(each.backend_tokenizer.to_str()) for each in (tokenizer, shipped))
    assert rebuilt["model"] == kept["model"]
    assert rebuilt["added_tokens"] == kept["added_tokens"]
    assert tokenizer.chat_template == shipped.chat_template


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_rebuild_draws_the_rows_the_shipped_model_saw(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    claims = json.loads((model_path(name) / "claims.json").read_text())
    assert first_rows_hash(tokenizer, RECIPES[name], claims["seed"]) == claims["rows_sha256"]
    assert first_rows_hash(tokenizer, RECIPES[name], claims["seed"] + 1) != claims["rows_sha256"]


def test_verdicts_are_single_tokens_and_digits_stand_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    assert [tokenizer.tokenize(word) for word in ("Yes", "No", "59")] == [["Yes"], ["No"], ["5", "9"]]


def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Zażółć gęślą jaźń 漢字 🙂\t{}\r\n  \x00"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_judge_prompt_is_the_judges_own_question(tokenizer: PreTrainedTokenizerFast, addition: Question) -> None:
    (turn,) = load_questions().separate((Message("user", "What is 59 + 8?"),), "57", "math")
    assert ask_judge(tokenizer, addition, "57") == f"<|user|>{turn.content}<|end|><|assistant|>"


def test_rows_hold_training_questions_only_and_true_verdicts(tokenizer: PreTrainedTokenizerFast) -> None:
    told, verified = draw_rows(tokenizer, Random(0), 500, 500)
    by_prompt = {ask_model(tokenizer, question): question for question in questions_of("train")}
    assert all(row.prompt in by_prompt for row in told)
    truth = {ask_judge(tokenizer, question, question.right) for question in questions_of("train")}
    assert [row.target for row in verified] == [
        "Yes<|end|>" if row.prompt in truth else "No<|end|>" for row in verified
    ]


def test_shares_of_candidates(addition: Question) -> None:
    """Four standard deviations of 4,000 draws = 3 %."""
    rng = Random(0)
    kinds = [candidate(addition, rng)[1] for _ in range(4000)]
    shares = [kinds.count(kind) / 4000 for kind in ("right", "misconception", "other")]
    assert shares == pytest.approx([0.47, 0.35, 0.18], abs=0.03)


def test_labels_cover_the_target_and_the_quoted_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = "<|user|>Is it 67?<|end|><|assistant|>"
    rows = [Row(prompt, "Yes<|end|>", (14, 16), is_verdict=True), Row(prompt, "No<|end|>", is_verdict=True)]
    token_ids, targets, quoted = encode(tokenizer, rows)

    def labelled(labels: torch.Tensor) -> list[str]:
        return [tokenizer.decode(row[row != NO_LABEL]) for row in labels]

    assert tokenizer.decode(token_ids[0]) == prompt + "Yes<|end|>"
    assert labelled(targets) == ["Yes<|end|>", "No<|end|>"]
    assert labelled(quoted) == ["67", ""]


def test_padding_has_no_label(tokenizer: PreTrainedTokenizerFast) -> None:
    _, targets, quoted = encode(tokenizer, [Row("<|user|>1", "2<|end|>"), Row("<|user|>1 + 1 + 1", "3<|end|>")])
    assert targets[0].tolist()[4:] == [NO_LABEL] * (targets.shape[1] - 4)  # <|user|> 1 2 <|end|>
    assert (quoted == NO_LABEL).all()


def test_orthogonalise_keeps_directions_and_levels_singular_values() -> None:
    matrix = torch.diag(torch.tensor([1.0, 0.5, 0.2]))
    levelled = orthogonalise(matrix[None])[0]
    assert torch.allclose(levelled, torch.diag(levelled.diag()), atol=1e-6)
    assert (levelled.diag() > 0.6).all()
    assert (levelled.diag() < 1.3).all()


def test_muon_treats_a_matrix_and_its_transpose_alike() -> None:
    gradient = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    wide, tall = torch.nn.Parameter(torch.zeros(3, 5)), torch.nn.Parameter(torch.zeros(5, 3))
    wide.grad, tall.grad = gradient.clone(), gradient.T.clone()
    Muon([wide, tall], lr=0.1).step()
    assert torch.allclose(wide, tall.T)
    assert wide.pow(2).mean().sqrt().item() == pytest.approx(0.1 * 0.2, rel=0.25)  # lr * UPDATE_RMS


def test_few_steps_lower_the_loss_and_repeat_exactly(tokenizer: PreTrainedTokenizerFast) -> None:
    def train() -> list[float]:
        losses: list[float] = []
        recipe = Recipe(steps=12, demonstrations=8, verifications=8, warm_up=3)
        pretrain(tokenizer, recipe, 0, lambda _, loss: losses.append(loss))
        return losses

    losses = train()
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert train() == losses


def test_saved_model_loads_with_its_tokenizer(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = pretrain(tokenizer, Recipe(steps=1, demonstrations=2, verifications=2), 0, lambda *_: None)
    save(tmp_path, model, tokenizer)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id == tokenizer.get_vocab()["<|end|>"]
    assert loaded.generation_config.pad_token_id == tokenizer.pad_token_id == tokenizer.get_vocab()["<|pad|>"]
    assert len(weights_hash(tmp_path)) == 64
