"""What the yes-no judge asks: category -> question -> messages.

    >>> questions = load_questions()
    >>> questions.separate((Message("user", "What is 2 + 2?"),), "4", "math")[0].content.splitlines()[0]
    'Request:'

The wording is data (`questions/*.toml`); a file of your own with the same keys can replace it. The reference
implementation's JSON files are read too: an object of questions by its four categories or by a benchmark's subsets, or
an object of several such sets, of which one is chosen by `FILE.json#SET`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from selfjudge.errors import ConfigError, DataError
from selfjudge.records import CATEGORIES, Example, Message

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

QUESTIONS = Path(__file__).parent / "questions"
BUILT_IN = QUESTIONS / "yes_no.toml"
PLACEHOLDERS = ("{request}", "{response}", "{question}", "{answer_format}")

Ablation = Literal["none", "same", "shuffled"]
SHUFFLED = {"chat": "math", "code": "chat", "math": "safety", "safety": "code"}
"""Category -> whose question it gets under `--ablation shuffled`; no category keeps its own."""

REFERENCE_YES, REFERENCE_NO = (" Yes",), (" No",)
"""The label words of the reference implementation."""
REFERENCE_CATEGORIES = {"General": "code", "chat": "chat", "Safety": "safety", "Math": "math"}
"""The keys of its self-improvement questions -> categories; its `General` question is about code."""
SUBSET_TAGS = ("subset", "domain")
"""Where an example says which subset it is of, the first one that the questions know."""
RM_BENCH_PREFIX = "RM-Bench-"
DEFAULT = "default"


@dataclass(frozen=True)
class Questions:
    """The wording of the judge: questions per category, the layout around them and the words that answer them."""

    layout: str
    answer_format: str
    questions: dict[str, tuple[str, ...]]
    """Category (or subset) -> paraphrases; `number` says which is asked."""
    yes: tuple[str, ...]
    no: tuple[str, ...]
    number: int = 0
    same: tuple[str, ...] = ()
    """Paraphrases of one question for all categories, for the ablation."""
    by_subset: bool = False
    """The questions are keyed by a benchmark's subsets: for comparison only, these give labels away."""
    ends_with_question: bool = False
    """In the reference's layout the question stands behind the response (its RM-Bench script), not at the start."""

    @property
    def wordings(self) -> int:
        """How many paraphrases every category has."""
        return min(map(len, self.questions.values()))

    def topic(self, example: Example) -> str:
        """The key of the question for an example: its category, or its subset; raises DataError for an unknown one."""
        if not self.by_subset:
            return str(example.category)
        stated = [str(example.tags[tag]) for tag in SUBSET_TAGS if tag in example.tags]
        known = next((name for name in [*stated, DEFAULT] if name in self.questions), None)
        if known is None:
            raise DataError(
                f"{example.id}: no question for its subset ({' or '.join(stated) or 'none stated'}) and no `{DEFAULT}` "
                f"in the questions file, which has {', '.join(self.questions)}; add one, or use questions by category"
            )
        return known

    def ablated(self, ablation: Ablation) -> Questions:
        """With one question for all categories, or every category with another one's; raises ConfigError."""
        if ablation == "none":
            return self
        if self.by_subset:
            raise ConfigError(
                f"--ablation {ablation}: the questions are by subset; use a file with the four categories"
            )
        if ablation == "same" and not self.same:
            raise ConfigError("--ablation same: the questions file has no `same` (a list of questions)")
        changed = {name: self.same if ablation == "same" else self.questions[SHUFFLED[name]] for name in CATEGORIES}
        return replace(self, questions=changed)

    def using(self, number: int) -> Questions:
        """The same with another paraphrase, counted from 0."""
        return replace(self, number=number)

    def question(self, topic: str) -> str:
        """What is asked about a response to a request of this category or subset (see `topic`)."""
        return self.questions[topic][self.number]

    def separate(self, messages: tuple[Message, ...], response: str, topic: str) -> tuple[Message, ...]:
        """One user turn that quotes the request and the response and ends with the question."""
        values = (flatten(messages), response, self.question(topic), self.answer_format)
        text = fill(self.layout, dict(zip(PLACEHOLDERS, values, strict=True)))
        return (Message("user", text if self.answer_format else text.rstrip()),)

    def in_place(self, messages: tuple[Message, ...], response: str, topic: str) -> tuple[Message, ...]:
        """The conversation itself, the response as the assistant's turn, the question as the next turn."""
        return (*messages, Message("assistant", response), Message("user", self.next_turn(topic)))

    def next_turn(self, topic: str) -> str:
        """The question by itself, behind a response of the same conversation."""
        return f"{self.question(topic)} {self.answer_format}" if self.answer_format else self.question(topic)

    def as_reference(self, messages: tuple[Message, ...], response: str, topic: str) -> tuple[Message, ...]:
        """The reference implementation's text, blanks and all, as the content of one message: to be read raw."""
        quoted = f"    User : {flatten(messages)}\n    Response : {response}\n    "
        question = self.next_turn(topic)
        text = f"Given the following:\n{quoted}{question}" if self.ends_with_question else f"{question}\n{quoted}"
        return (Message("user", text),)


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


def load_questions(path: str | None = None, wording: int = 1, ablation: Ablation = "none") -> Questions:
    """The built-in questions or those of a file; asks the `wording`-th, counted from 1. Raises ConfigError."""
    loaded = _load_json(path) if path is not None and _is_json(path) else _load_toml(path)
    asked = loaded.ablated(ablation)
    if not 1 <= wording <= asked.wordings:
        raise ConfigError(
            f"--wording {wording}: {path or 'the built-in file'} has {asked.wordings} of each question; "
            f"use 1 to {asked.wordings}"
        )
    return asked.using(wording - 1)


def _load_toml(path: str | None) -> Questions:
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
        same=_list(table.get("same", [])),
    )


def _is_json(path: str) -> bool:
    return path.endswith(".json") or ".json#" in path


def _load_json(path: str) -> Questions:
    """Questions in the reference implementation's form, in the built-in layout; they state their answer format."""
    file, name = path, ""
    if not path.endswith(".json"):
        before, name = path.rsplit(".json#", 1)
        file = before + ".json"
    table = _chosen_set(_read_json(Path(file)), file, name)
    wrong = [key for key, value in table.items() if not _is_wording(value)]
    if wrong:
        raise ConfigError(f"questions file {path}: {', '.join(wrong)} should be a text or a list of texts")
    by_subset = set(table) not in (set(CATEGORIES), set(REFERENCE_CATEGORIES))
    named = {key if by_subset else REFERENCE_CATEGORIES.get(key, key): _list(value) for key, value in table.items()}
    return replace(
        _load_toml(None),
        answer_format="",
        questions=_with_default(_without_prefix(named)),
        same=(),
        by_subset=by_subset,
        ends_with_question=all(key.startswith(RM_BENCH_PREFIX) for key in table),
    )


def _read_json(source: Path) -> dict[str, Any]:
    try:
        table = json.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"questions file {source}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"questions file {source}: {error}") from error
    if not isinstance(table, dict) or not table:
        raise ConfigError(f"questions file {source}: should be an object of questions")
    return cast(dict[str, Any], table)


def _chosen_set(table: dict[str, Any], file: str, name: str) -> dict[str, Any]:
    """The set called `name` of a file of several, or the whole of a file that is one."""
    sets = {key: value for key, value in table.items() if isinstance(value, dict)}
    if not name and not sets:
        return table
    if name not in sets or not sets[name]:
        found = f"its sets are {', '.join(sets)}" if sets else "the file is one set"
        hint = f"; give {file}#{next(iter(sets))} or another" if sets else f"; give {file}"
        raise ConfigError(f"questions file {file}{'#' if name else ''}{name}: {found}{hint}")
    return cast(dict[str, Any], sets[name])


def _without_prefix(questions: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """`RM-Bench-chat`, a name of the reference's own, is the domain `chat`."""
    return {key.removeprefix(RM_BENCH_PREFIX): value for key, value in questions.items()}


def _with_default(questions: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """A `default` of one wording stands for all of them, as in the reference."""
    most = max(map(len, questions.values()))
    return {key: value * most if key == DEFAULT and len(value) == 1 else value for key, value in questions.items()}


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
    if "same" in table and not _is_wording(table["same"]):
        problems.append("`same` must be a question or a list of questions")
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
