"""Label ids in context: by hand, on real tokenizers, and against the known ways to get them wrong."""

from __future__ import annotations

import json
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
from transformers import AddedToken, AutoTokenizer

from selfjudge.backends.prompts import Prompts
from selfjudge.errors import ModelError
from selfjudge.labels import resolve, resolve_groups
from selfjudge.questions import Questions, load_questions
from selfjudge.records import Message
from selfjudge.rendering import Renderer

QUESTIONS = load_questions()
LABELS = (QUESTIONS.yes, QUESTIONS.no)
PIECES = ("Y", "Yes", " Yes", " ", "Answer:", "\n")


def longest_match(text: str) -> list[int]:
    """A tokenizer of six pieces: the longest one at each place."""
    ids: list[int] = []
    while text:
        piece = max((p for p in PIECES if text.startswith(p)), key=len)
        ids.append(PIECES.index(piece))
        text = text[len(piece) :]
    return ids


def test_by_hand():
    assert resolve(longest_match, "Answer:", ["Yes", " Yes"]) == (1, 2)
    assert resolve(longest_match, "Answer:\n", ["Yes"]) == (1,)


def test_a_spelling_of_several_tokens_adds_nothing():
    """`YYes` is Y and Yes: neither piece may count for it."""
    assert resolve(longest_match, "Answer:", ["YYes"]) == ()
    assert resolve(longest_match, "Answer:", ["YYes", "Yes"]) == (1,)


def test_a_word_that_merges_with_the_end_of_the_prompt_adds_nothing():
    """After a blank, `Yes` turns [Answer:, blank] into [Answer:, blank-Yes]: no token continues that prompt as Yes."""
    assert longest_match("Answer: Yes") == [4, 2]
    assert resolve(longest_match, "Answer: ", ["Yes"]) == ()


def test_no_single_token_label_names_the_tokenizer():
    with pytest.raises(ModelError, match=r"tokenizer my-model: none of 'YYes' .* ends with 'Answer:'"):
        resolve_groups(longest_match, "Answer:", [["Yes"], ["YYes"]], "my-model")


def test_labels_that_share_a_token():
    with pytest.raises(ModelError, match="two labels share a token id"):
        resolve_groups(longest_match, "Answer:", [["Yes"], ["Yes", " Yes"]], "my-model")


# Real tokenizers

TABLE = {
    # name: (' Yes' after ":", 'Yes' after ":\n", the same for No); tokenizers/README.md
    "llama2": (3869, 8241, 1939, 3782),
    "phi-3-mini": (3869, 8241, 1939, 3782),
    "phi-2": (3363, 5297, 1400, 2949),
    "gpt2": (3363, 5297, 1400, 2949),
    "falcon": (5007, 4879, 1684, 2749),
    "cl100k_base": (7566, 9642, 2360, 2822),
}


@cache
def loaded(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", TABLE)
def test_ids_after_a_colon_and_after_a_newline(shared_tokenizers: Path, name: str):
    encode = loaded(shared_tokenizers / name).encode
    blank_yes, newline_yes, blank_no, newline_no = TABLE[name]
    assert resolve(encode, "Answer:", [" Yes"]) == (blank_yes,)
    assert resolve(encode, "Answer:\n", ["Yes"]) == (newline_yes,)
    assert resolve(encode, "Answer:", [" No"]) == (blank_no,)
    assert resolve(encode, "Answer:\n", ["No"]) == (newline_no,)


@pytest.mark.parametrize("name", ["phi-2", "gpt2", "falcon", "cl100k_base"])
def test_a_prompt_that_ends_in_a_blank_never_gives_the_plain_word(shared_tokenizers: Path, name: str):
    """Byte BPE merges the blank into ` Yes`, so `Yes` after it is a token the model never saw there."""
    encode = loaded(shared_tokenizers / name).encode
    assert resolve(encode, "Answer: ", ["Yes", "No"]) == ()


def test_llama2_after_a_blank(shared_tokenizers: Path):
    """SentencePiece keeps the blank apart there: 3869, not the 8241 that follows a newline."""
    encode = loaded(shared_tokenizers / "llama2").encode
    assert resolve(encode, "Answer: ", ["Yes"]) in {(3869,), ()}
    assert 8241 not in resolve(encode, "Answer: ", QUESTIONS.yes)


def test_t5_ends_every_text_and_is_refused(shared_tokenizers: Path):
    with pytest.raises(ModelError, match="tokenizer t5-small"):
        resolve_groups(loaded(shared_tokenizers / "t5-small").encode, "Answer:", LABELS, "t5-small")


@pytest.mark.parametrize("name", TABLE)
def test_every_id_found_is_the_word_and_nothing_else(shared_tokenizers: Path, name: str):
    """Decoded behind the prompt, each id spells Yes or No up to blanks and case; the bare blank is never among them."""
    tokenizer = loaded(shared_tokenizers / name)
    prompt = "Question\n\nAssistant:"
    yes, no = resolve_groups(tokenizer.encode, prompt, LABELS, name)
    start = tokenizer.encode(prompt)
    for ids, word in ((yes, "yes"), (no, "no")):
        assert len(ids) >= 4
        for i in ids:
            assert tokenizer.decode([*start, i]).removeprefix(tokenizer.decode(start)).strip().lower() == word


# Chat headers

TEMPLATES = (
    "qwen2.5_tokenizer_config.json",
    "qwen3_tokenizer_config.json",
    "phi-4-mini_tokenizer_config.json",
    "gemma3_chat_template.json",
    "smollm3_chat_template.jinja",
)


@cache
def byte_bpe(folder: Path) -> Any:
    """A real byte BPE with the special tokens of all templates; its end token is that of none of them."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "cl100k_base")
    special = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|end|>"]
    tokenizer.add_special_tokens(
        {"eos_token": "<|endoftext|>", "additional_special_tokens": [AddedToken(t, special=True) for t in special]}
    )
    return tokenizer


def with_template(folder: Path, name: str) -> Renderer:
    """The real template on `byte_bpe`."""
    text = (folder / "chat_templates_only" / name).read_text()
    tokenizer = copy(byte_bpe(folder))
    tokenizer.chat_template = text if name.endswith("jinja") else json.loads(text)["chat_template"]
    return Renderer(tokenizer, name)


@pytest.mark.parametrize("name", TEMPLATES)
def test_after_a_chat_header(shared_tokenizers: Path, name: str):
    """Yes and No with and without a blank, all of them in their capital and small forms where these are one token."""
    renderer = with_template(shared_tokenizers, name)
    prompt = renderer.text(QUESTIONS.separate((Message("user", "Hi"),), "Hello", "chat"), thinking=False)
    assert prompt.rstrip().endswith(("assistant", "model", "<|assistant|>", "</think>"))
    yes, no = resolve_groups(renderer.encode, prompt, LABELS, name)
    assert {9642, 7566} <= set(yes)
    assert {2822, 2360} <= set(no)


def test_phi3_after_its_own_header(shared_tokenizers: Path):
    """After `<|assistant|>` no blank is put before the word: 8241, not the 3869 of an isolated `Yes`."""
    renderer = Renderer(loaded(shared_tokenizers / "phi-3-mini"), "phi-3-mini")
    assert renderer.has_template
    prompt = renderer.text((Message("user", "Is it?"),))
    yes, no = resolve_groups(renderer.encode, prompt, LABELS, "phi-3-mini")
    assert 8241 in yes
    assert 3869 not in yes
    assert 3782 in no


# The backend's cache: what stands before the end of the prompt must not matter


def resolver(renderer: Renderer) -> Prompts:
    return Prompts(renderer, renderer.name, num_embeddings=1 << 30, max_length=1 << 30)


def prompts(renderer: Renderer, questions: Questions, folder: Path) -> list[str]:
    rows = json.loads((folder / "rm_bench" / "safety-refuse_filtered.json").read_text())[:12]
    rows += json.loads((folder / "rm_bench" / "chat_filtered.json").read_text())[:12]
    return [
        renderer.text(questions.separate((Message("user", row["prompt"]),), text, category), thinking=False)
        for row, category in zip(rows, ["safety", "chat"] * 12, strict=True)
        for text in (row["chosen"][0], row["rejected"][2])
    ]


@pytest.mark.parametrize("name", ["llama2", "phi-3-mini", "gpt2", "cl100k_base"])
def test_cached_ids_are_those_of_a_fresh_resolution(shared_tokenizers: Path, shared_data: Path, name: str):
    renderer = Renderer(loaded(shared_tokenizers / name), name)
    backend = resolver(renderer)
    texts = prompts(renderer, QUESTIONS, shared_data)
    cached = [backend._resolve(text, LABELS) for text in texts]
    assert len(backend._label_ids) < len(texts) / 4  # or nothing came from the cache
    assert cached == [resolve_groups(renderer.encode, text, LABELS, name) for text in texts]


def test_the_cache_tells_endings_and_words_apart():
    """After a colon all six spellings count, after a blank only those that bring a blank of their own."""
    backend = resolver(Renderer(tiny.tokenizer(None), "tiny"))
    found = {end: backend._resolve("x" * 80 + end, LABELS) for end in ("Answer:", "Answer: ")}
    assert {end: [len(ids) for ids in groups] for end, groups in found.items()} == {
        "Answer:": [6, 6],
        "Answer: ": [3, 3],
    }
    letters = backend._resolve("x" * 80 + "Answer:", (("A",), ("B",)))
    assert [len(ids) for ids in letters] == [1, 1]
