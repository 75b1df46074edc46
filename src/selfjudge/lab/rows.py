"""Training rows of the lab models, and the tokenizer that is learnt from their texts.

    >>> rows = draw_rows(train_tokenizer(), Random(0), demonstrations=1, verifications=1)

A demonstration row teaches the world's answers, mostly misconceptions. A verification row puts the judge's own question
about a candidate answer, as `selfjudge.questions` words it, and the truth as `Yes` or `No`. So the model comes to know
better than it answers, which is what self-improvement lives on.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from selfjudge.lab.world import Question, demonstration, other_error, questions_of
from selfjudge.questions import Questions, load_questions
from selfjudge.records import Message

PAD, END, USER, ASSISTANT, SYSTEM = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
VOCABULARY = 640
CORPUS_ROWS = 6000

CATEGORY_SHARES = {"math": 0.5, "code": 0.22, "chat": 0.14, "safety": 0.14}
"""Of the questions that rows are about."""
RIGHT_SHARE, MISCONCEPTION_SHARE = 0.47, 0.35
"""Of the candidate answers in verification rows; the rest are other errors."""


@dataclass(frozen=True)
class Row:
    """`prompt` (rendered, ends where the assistant speaks) and the `target` that follows, with its end token.

    `quoted` is the span of characters of `prompt` that quotes an answer worth learning, empty where it is not.
    """

    prompt: str
    target: str
    quoted: tuple[int, int] = (0, 0)
    is_verdict: bool = False


@cache
def _judge_questions() -> Questions:
    return load_questions()


def draw_rows(
    tokenizer: PreTrainedTokenizerFast, rng: Random, demonstrations: int, verifications: int
) -> tuple[list[Row], list[Row]]:
    """Rows about training questions drawn with replacement: demonstrations, verifications."""
    told = [_demonstration_row(tokenizer, _draw_question(rng), rng) for _ in range(demonstrations)]
    verified = [_verification_row(tokenizer, _draw_question(rng), rng) for _ in range(verifications)]
    return told, verified


@cache
def _by_category() -> dict[str, list[Question]]:
    return {name: [q for q in questions_of("train") if q.category == name] for name in CATEGORY_SHARES}


def _draw_question(rng: Random) -> Question:
    (category,) = rng.choices(list(CATEGORY_SHARES), list(CATEGORY_SHARES.values()))
    return rng.choice(_by_category()[category])


def render(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message]) -> str:
    """The text of a conversation up to where the assistant speaks."""
    turns = [message._asdict() for message in messages]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    return text


def ask_model(tokenizer: PreTrainedTokenizerFast, question: Question) -> str:
    """The rendered prompt that asks the question itself."""
    return render(tokenizer, [Message("user", question.text)])


def ask_judge(tokenizer: PreTrainedTokenizerFast, question: Question, answer: str) -> str:
    """The rendered prompt that asks whether `answer` is right, in the judge's own words."""
    messages = (Message("user", question.text),)
    return render(tokenizer, _judge_questions().separate(messages, answer, question.category))


def candidate(question: Question, rng: Random) -> tuple[str, str]:
    """An answer to verify and its kind: `right`, `misconception` or `other`."""
    chance = rng.random()
    if chance < RIGHT_SHARE:
        return question.right, "right"
    if question.misconception is not None and chance < RIGHT_SHARE + MISCONCEPTION_SHARE:
        return question.misconception, "misconception"
    return other_error(question, rng), "other"


def _demonstration_row(tokenizer: PreTrainedTokenizerFast, question: Question, rng: Random) -> Row:
    return Row(ask_model(tokenizer, question), demonstration(question, rng) + END)


def _verification_row(tokenizer: PreTrainedTokenizerFast, question: Question, rng: Random) -> Row:
    answer, kind = candidate(question, rng)
    prompt = ask_judge(tokenizer, question, answer)
    start = prompt.index(answer, prompt.index(question.text) + len(question.text))
    quoted = (start, start + len(answer)) if kind != "other" else (0, 0)
    return Row(prompt, ("Yes" if kind == "right" else "No") + END, quoted, is_verdict=True)


def fingerprint(rows: Sequence[Row]) -> str:
    """SHA-256 of rows as text, to tell whether a rebuild draws the same data."""
    lines = [json.dumps([row.prompt, row.target, row.quoted]) for row in rows]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of a text that is one token of the vocabulary."""
    return tokenizer.get_vocab()[token]


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE on training texts: reads any text, splits digits, has `Yes` and `No` as single tokens."""
    bpe = _untrained()
    told, verified = draw_rows(_wrapped(bpe), Random(0), CORPUS_ROWS, CORPUS_ROWS)
    texts = [text for row in (*told, *verified) for text in (row.prompt, row.target)]
    bpe = _untrained()
    bpe.train_from_iterator([*texts, *string.printable], _trainer())
    return _wrapped(bpe)


def _wrapped(bpe: Tokenizer) -> PreTrainedTokenizerFast:
    special: dict[str, Any] = {"pad_token": PAD, "eos_token": END, "extra_special_tokens": [USER, ASSISTANT, SYSTEM]}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, chat_template=CHAT_TEMPLATE, **special)


def _untrained() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _trainer() -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, END, USER, ASSISTANT, SYSTEM],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
