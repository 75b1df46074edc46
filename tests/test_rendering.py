"""Messages to ids: chat templates, the plain layout, text that is no model's own sample, and the cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from test_labels import loaded, with_template

from selfjudge.errors import ModelError
from selfjudge.records import Message
from selfjudge.rendering import Renderer

HELLO = (Message("user", "Is it?"),)


def chat() -> Renderer:
    return Renderer(tiny.tokenizer(), "tiny")


def plain() -> Renderer:
    return Renderer(tiny.tokenizer(None), "tiny")


def test_texts():
    talk = (Message("system", "Be brief."), *HELLO)
    assert chat().text(HELLO) == "<|im_start|>user\nIs it?<|im_end|>\n<|im_start|>assistant\n"
    assert plain().text(talk) == "System: Be brief.\n\nUser: Is it?\n\nAssistant:"
    assert plain().text(talk, answer_follows=False) == "System: Be brief.\n\nUser: Is it?\n\n"


@pytest.mark.parametrize("renderer", [chat(), plain()], ids=["chat", "plain"])
def test_response_ids_continue_the_prompt(renderer: Renderer):
    prompt, response = renderer.response_ids(HELLO, "It is five")
    assert prompt == renderer.ids(HELLO)
    assert response[-1] == renderer.tokenizer.eos_token_id
    assert renderer.decode(response[:-1]) == "It is five"
    assert renderer.tokenizer.decode(prompt + response[:-1]).endswith(
        "assistant\nIt is five" if renderer.has_template else "Assistant: It is five"
    )


def test_an_unstable_template_is_refused():
    renderer = Renderer(tiny.tokenizer(tiny.UNSTABLE), "unstable")
    with pytest.raises(ModelError, match="unstable: its chat template is not prefix-stable"):
        renderer.response_ids(HELLO, "It is")


def test_a_template_that_refuses_the_turns():
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    with pytest.raises(ModelError, match=r"refuses the turns `system user` \(no system role\)"):
        Renderer(tiny.tokenizer(strict), "strict").text((Message("system", "x"), *HELLO))


def test_response_ids_stand_in_context(shared_tokenizers: Path):
    """Phi-3's SentencePiece writes an isolated `Yes` with a blank (3869); behind its header it is 8241, then 32007."""
    renderer = Renderer(loaded(shared_tokenizers / "phi-3-mini"), "phi-3-mini")
    prompt, response = renderer.response_ids(HELLO, "Yes")
    assert response[0] == 8241
    assert renderer.encode(renderer.text(HELLO) + "Yes") == [*prompt, 8241]


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("qwen2.5_tokenizer_config.json", "<|im_end|>"),
        ("phi-4-mini_tokenizer_config.json", "<|end|>"),
        ("gemma3_chat_template.json", "<end_of_turn>"),
        ("smollm3_chat_template.jinja", "<|im_end|>"),
    ],
)
def test_the_templates_own_end_of_turn(shared_tokenizers: Path, name: str, end: str):
    """Not the tokenizer's end token, where the two differ."""
    renderer = with_template(shared_tokenizers, name)
    _, response = renderer.response_ids(HELLO, "It is.")
    assert renderer.tokenizer.decode(response[-1:]) == end
    assert renderer.tokenizer.decode(response[:-1]) == "It is."


def test_an_empty_response_is_its_end():
    _, response = chat().response_ids(HELLO, "")
    assert response == [chat().tokenizer.eos_token_id]


def test_cut_middle():
    text = " ".join(str(number) for number in range(100))
    renderer = plain()
    assert renderer.cut_middle(text, 10_000) == text
    short = renderer.cut_middle(text, 20)
    head, tail = short.split(" [...] ")
    assert text.startswith(head)
    assert text.endswith(tail)
    lengths = [len(renderer.tokenizer.encode(part)) for part in (head, tail)]
    assert lengths == [10, 10]
