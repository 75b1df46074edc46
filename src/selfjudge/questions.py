"""What the yes-no judge asks: category -> question -> messages.

    >>> questions = load_questions()
    >>> questions.separate((Message("user", "What is 2 + 2?"),), "4", "math")[0].content.splitlines()[0]
    'Request:'

The wording is data (`questions/*.toml`); a file of your own with the same keys can replace it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfjudge.errors import ConfigError
from selfjudge.records import CATEGORIES, Message

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

QUESTIONS = Path(__file__).parent / "questions"
BUILT_IN = QUESTIONS / "yes_no.toml"
PLACEHOLDERS = ("{request}", "{response}", "{question}", "{answer_format}")


@dataclass(frozen=True)
class Questions:
    """The wording of the judge: questions per category, the layout around them and the words that answer them."""

    layout: str
    answer_format: str
    questions: dict[str, tuple[str, ...]]
    """Category -> paraphrases; `number` says which is asked."""
    yes: tuple[str, ...]
    no: tuple[str, ...]
    number: int = 0

    @property
    def wordings(self) -> int:
        """How many paraphrases every category has."""
        return min(map(len, self.questions.values()))

    def using(self, number: int) -> Questions:
        """The same with another paraphrase, counted from 0."""
        return replace(self, number=number)

    def question(self, category: str) -> str:
        """What is asked about a response to a request of this category."""
        return self.questions[category][self.number]

    def separate(self, messages: tuple[Message, ...], response: str, category: str) -> tuple[Message, ...]:
        """One user turn that quotes the request and the response and ends with the question."""
        values = (flatten(messages), response, self.question(category), self.answer_format)
        return (Message("user", fill(self.layout, dict(zip(PLACEHOLDERS, values, strict=True)))),)

    def in_place(self, messages: tuple[Message, ...], response: str, category: str) -> tuple[Message, ...]:
        """The conversation itself, the response as the assistant's turn, the question as the next turn."""
        return (*messages, Message("assistant", response), Message("user", self.next_turn(category)))

    def next_turn(self, category: str) -> str:
        """The question by itself, behind a response of the same conversation."""
        return f"{self.question(category)} {self.answer_format}"


def fill(layout: str, values: dict[str, str]) -> str:
    """The layout with each placeholder replaced once; they must stand in the order of `values`."""
    parts: list[str] = []
    for placeholder, value in values.items():  # one pass: a value may contain braces
        before, layout = layout.split(placeholder, 1)
        parts += [before, value]
    return "".join([*parts, layout])


def flatten(messages: tuple[Message, ...]) -> str:
    """A conversation as text: the bare content of a single user turn, else one paragraph per turn with its role."""
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].content
    return "\n\n".join(f"{message.role.capitalize()}: {message.content}" for message in messages)


def load_questions(path: str | None = None) -> Questions:
    """The built-in wording, or that of a TOML file with the same keys. Raises ConfigError with all its problems."""
    source = BUILT_IN if path is None else Path(path)
    table = read_table(source)
    problems = _problems(table)
    if problems:
        raise ConfigError(f"questions file {source}: {'; '.join(problems)}")
    labels = table["labels"]
    return Questions(
        layout=table["layout"].lstrip("\n"),
        answer_format=table["answer_format"],
        questions={name: _list(table["questions"][name]) for name in CATEGORIES},
        yes=tuple(labels["yes"]),
        no=tuple(labels["no"]),
    )


def read_table(source: Path) -> dict[str, Any]:
    """A TOML file as a table; raises ConfigError."""
    try:
        return tomllib.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"questions file {source}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"questions file {source}: {error}") from error


def _problems(table: dict[str, Any]) -> list[str]:
    problems = [f"`{key}` is missing (a string)" for key in ("layout", "answer_format") if not _is_text(table.get(key))]
    if not problems:
        positions = [table["layout"].find(placeholder) for placeholder in PLACEHOLDERS]
        if -1 in positions or positions != sorted(positions):
            problems.append(f"`layout` must contain {', '.join(PLACEHOLDERS)} once each, in this order")
    questions = table.get("questions", {})
    problems += [f"[questions] has no `{name}`" for name in CATEGORIES if not _is_wording(questions.get(name))]
    for label in ("yes", "no"):
        words = table.get("labels", {}).get(label)
        if not words or not all(_is_text(word) for word in words):
            problems.append(f"[labels] `{label}` must be a list of words")
    return problems


def _list(value: Any) -> tuple[str, ...]:
    """One wording as a text, or several as a list."""
    return (value,) if isinstance(value, str) else tuple(value)


def _is_wording(value: Any) -> bool:
    return _is_text(value) or (isinstance(value, list) and bool(value) and all(map(_is_text, value)))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)
