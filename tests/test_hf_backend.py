"""Labels from the transformers backend: against the plain model, and what must not change them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch

from selfjudge.backends import BackendOptions, LabelRequest, LabelResult
from selfjudge.backends.hf import HFBackend
from selfjudge.errors import ModelError
from selfjudge.labels import resolve
from selfjudge.questions import load_questions
from selfjudge.records import Message

QUESTIONS = load_questions()
LABELS = (QUESTIONS.yes, QUESTIONS.no)
LETTERS = (("A", " A"), ("B", " B"), ("C", " C"), ("D", " D"))
WORDS = ("one", "two", "three", "sum", "of", "Yes", "No", "course", "five", "What", "is", "42", "(x)", "...")


def request(group: str, prompt: str, text: str, in_place: bool = False, labels: Any = LABELS) -> LabelRequest:
    render = QUESTIONS.in_place if in_place else QUESTIONS.separate
    messages = (Message("user", prompt),)
    return LabelRequest(group, lambda shown: render(messages, shown, "math"), text, labels)


def requests(in_place: bool = False) -> list[LabelRequest]:
    """Five prompts with one to four responses of 1 to 40 words, one of them asking for letters."""
    rng = random.Random(0)

    def words(most: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, most)))

    found: list[LabelRequest] = []
    for group in range(5):
        prompt = words(20)
        labels = LETTERS if group == 3 else LABELS
        found += [request(f"g{group}", prompt, words(40), in_place, labels) for _ in range(rng.randint(1, 4))]
    return found


def backend(folder: str, **options: Any) -> HFBackend:
    return HFBackend(folder, BackendOptions(device="cpu", **options))


def values(results: Sequence[LabelResult]) -> torch.Tensor:
    """Log-probs and masses in one list."""
    return torch.tensor([value for result in results for value in (*result.logprobs, result.mass)])


@torch.no_grad()
def plain(model: HFBackend, asked: LabelRequest) -> LabelResult:
    """One prompt alone through the whole model, softmax over the vocabulary."""
    text = model.renderer.text(asked.render(asked.text))
    ids = model.renderer.encode(text)
    p = torch.softmax(model.causal(torch.tensor([ids])).logits[0, -1].double(), -1)
    groups = [list(resolve(model.renderer.encode, text, words)) for words in asked.labels]
    sums = [p[group].sum().item() for group in groups]
    return LabelResult(tuple(math.log(total) for total in sums), sum(sums), False)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("template", [tiny.CHATML, None], ids=["chat", "plain"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "phi", "mistral", "gemma2"])
def test_batched_is_the_plain_model(model_folder: Callable[..., str], name: str, template: str | None, in_place: bool):
    model = backend(model_folder(name, template))
    asked = requests(in_place)
    found = model.label_logprobs(asked)
    assert [len(result.logprobs) for result in found] == [len(r.labels) for r in asked]
    expected = [plain(model, one) for one in asked]
    torch.testing.assert_close(values(found), values(expected), rtol=1e-5, atol=1e-5)
    assert all(0 <= result.mass <= 1 and not result.truncated for result in found)


def test_neither_budget_nor_order_nor_grouping_matters(model_folder: Callable[..., str]):
    model = backend(model_folder("llama"))
    asked = requests()
    expected = values(model.label_logprobs(asked))
    for budget in (1, 150, 600, 100_000):
        other = backend(model_folder("llama"), token_budget=budget)
        torch.testing.assert_close(values(other.label_logprobs(asked)), expected, rtol=1e-5, atol=1e-5)
    order = list(range(len(asked)))
    random.Random(1).shuffle(order)
    shuffled = model.label_logprobs([asked[i] for i in order])
    back = [shuffled[order.index(i)] for i in range(len(asked))]
    torch.testing.assert_close(values(back), expected, rtol=1e-5, atol=1e-5)
    single = [model.label_logprobs([one])[0] for one in asked]
    torch.testing.assert_close(values(single), expected, rtol=1e-5, atol=1e-5)
    assert model.label_logprobs([]) == []


def test_one_group_without_a_common_beginning(model_folder: Callable[..., str]):
    """A caller may name anything a group: prompts that differ from the first token on are not mixed up."""
    model = backend(model_folder("llama", None))
    asked = [
        LabelRequest("same", lambda text, role=role: (Message(role, text),), "Is it?", LABELS)
        for role in ("user", "system", "assistant")
    ]
    found = model.label_logprobs(asked)
    torch.testing.assert_close(values(found), values([plain(model, one) for one in asked]), rtol=1e-5, atol=1e-5)


def test_shared_beginnings_are_computed_once(model_folder: Callable[..., str]):
    """Four answers to one prompt of 60 words: the row holds that prompt once."""
    model = backend(model_folder("llama"))
    asked = [request("x", "word " * 60, answer) for answer in ("one", "two", "Yes", "course")]
    seen: list[int] = []
    model.causal.get_input_embeddings().register_forward_hook(lambda _, ids, __: seen.append(ids[0].numel()))
    model.label_logprobs(asked)
    whole = sum(len(model.renderer.encode(model.renderer.text(one.render(one.text)))) for one in asked)
    assert max(seen) < 0.55 * whole


def test_without_mass(model_folder: Callable[..., str]):
    """Items with and without it in one row: the differences stay, the mass is NaN where it was not asked for."""
    model = backend(model_folder("llama"))
    full = model.label_logprobs(requests(False))
    some = [replace(r, with_mass=index % 2 == 0) for index, r in enumerate(requests(False))]
    for index, (found, expected) in enumerate(zip(model.label_logprobs(some), full, strict=True)):
        differences = [value - found.logprobs[0] for value in found.logprobs]
        assert differences == pytest.approx([value - expected.logprobs[0] for value in expected.logprobs], abs=1e-5)
        assert found.mass == pytest.approx(expected.mass) if index % 2 == 0 else math.isnan(found.mass)


def test_the_same_answer_for_any_text_before_the_question(model_folder: Callable[..., str]):
    """Responses that end in blanks, newlines or a label word leave the label ids what they are."""
    model = backend(model_folder("llama"))
    asked = [request("x", "Is it?", text) for text in ("Yes", "Yes ", "No\n\n", " ", "Answer: ")]
    model.label_logprobs(asked)
    assert len(set(model.prompts._label_ids.values())) == 1
    found = model.label_logprobs(asked)
    torch.testing.assert_close(values(found), values([plain(model, one) for one in asked]), rtol=1e-5, atol=1e-5)


# Too long


def shown(model: HFBackend, asked: LabelRequest) -> str:
    fitting = model.prompts._fitting(asked.quoted, model.prompts.max_length)
    assert fitting is not None
    return fitting[0]


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("template", [tiny.CHATML, None], ids=["chat", "plain"])
def test_a_long_response_loses_its_middle(model_folder: Callable[..., str], template: str | None, in_place: bool):
    model = backend(model_folder("llama", template))
    text = " ".join(f"w{number}" for number in range(1000))
    long, short = request("x", "Is it true?", text, in_place), request("x", "Is it true?", "w0", in_place)
    prompt = shown(model, long)
    assert len(model.renderer.encode(prompt)) <= tiny.CONTEXT
    assert len(model.renderer.encode(prompt)) > tiny.CONTEXT - 30  # not much more than needed
    assert "w0 w1 w2" in prompt
    assert "w998 w999" in prompt
    assert " [...] " in prompt
    assert "Is it true?" in prompt
    assert QUESTIONS.question("math") in prompt
    assert prompt.endswith(model.renderer.text(short.render("w0"))[-40:])
    found = model.label_logprobs([short, long])
    assert [result.truncated for result in found] == [False, True]
    with torch.no_grad():
        logits = model.causal(torch.tensor([model.renderer.encode(prompt)])).logits[0, -1]
    yes = list(resolve(model.renderer.encode, prompt, QUESTIONS.yes))
    expected = (logits[yes].logsumexp(-1) - logits.logsumexp(-1)).item()
    assert found[1].logprobs[0] == pytest.approx(expected, abs=1e-4)


def test_what_fits_exactly_is_not_cut(model_folder: Callable[..., str]):
    model = backend(model_folder("llama"))
    asked = request("x", "Is it?", "one two three four five six")
    length = len(model.renderer.encode(model.renderer.text(asked.render(asked.text))))
    results = [backend(model_folder("llama"), max_length=n).label_logprobs([asked])[0] for n in (length, length - 1)]
    assert [result.truncated for result in results] == [False, True]


def test_request_and_question_alone_are_too_long(model_folder: Callable[..., str]):
    """The row has no result, with the reason; the others have theirs."""
    model = backend(model_folder("llama"))
    rows = [
        request("row-1", "Is it?", "one"),
        request("row-7", "word " * 600, "one"),
        request("row-8", "Is it?", "two"),
    ]
    found = model.label_logprobs(rows)
    assert found[1].reason == "request and question alone exceed the 512 tokens that the model takes"
    assert all(map(math.isnan, found[1].logprobs))
    alone = model.label_logprobs([rows[0]]) + model.label_logprobs([rows[2]])
    assert [one.logprobs for one in (found[0], found[2])] == [pytest.approx(one.logprobs, abs=1e-5) for one in alone]


def test_logits_that_are_no_numbers_are_missing(model_folder: Callable[..., str]):
    model = backend(model_folder("llama"))
    with torch.no_grad():
        model.causal.get_output_embeddings().weight[:] = math.nan
    found = model.label_logprobs([request("x", "Is it?", "one")])[0]
    assert found.reason == "the model's logits are not numbers; try --dtype float32 or bfloat16"
    assert all(map(math.isnan, found.logprobs))


def test_letters_that_cut_a_character_in_two(model_folder: Callable[..., str]):
    """Byte tokens: a cut inside a character still gives a prompt that fits."""
    model = backend(model_folder("llama"))
    asked = request("x", "Is it?", "日本語" * 300)
    assert len(model.renderer.encode(shown(model, asked))) <= tiny.CONTEXT
    assert model.label_logprobs([asked])[0].truncated


# Precision


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_does_not_tie(model_folder: Callable[..., str], dtype: str):
    """50 different answers, 50 different finite log-odds, close to those of float32."""
    asked = [request("x", "Is it?", f"{number} is {number * 7}") for number in range(50)]
    found = backend(model_folder("llama"), dtype=dtype).label_logprobs(asked)
    exact = backend(model_folder("llama")).label_logprobs(asked)
    odds, expected = ([r.logprobs[0] - r.logprobs[1] for r in results] for results in (found, exact))
    assert all(math.isfinite(value) for value in odds)
    assert len(set(odds)) == 50
    assert torch.corrcoef(torch.tensor([odds, expected]))[0, 1] > 0.98
    assert all(0 <= result.mass <= 1 + 1e-5 for result in found)


def test_no_single_token_label(model_folder: Callable[..., str]):
    folder = model_folder("llama")
    with pytest.raises(ModelError, match="none of 'Affirmative' is a single token"):
        backend(folder).label_logprobs([request("x", "Is it?", "one", labels=(("Affirmative",), ("No",)))])
