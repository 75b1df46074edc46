"""Checked values out of a user's row: a text, a number, a conversation. What does not fit is said in a user's words.

>>> text_of(5, "prompt")
Traceback (most recent call last):
selfjudge.values.RowError: 'prompt' must be a text, found a number
"""

from __future__ import annotations

from typing import Any, cast

from selfjudge.records import Message

Row = dict[str, Any]
ROLES = ("system", "user", "assistant")


class RowError(ValueError):
    """A row cannot be used; the reader adds the file and the row number."""


def conversation_of(value: Any, column: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise RowError(f"{column!r} must be a list of messages, found {kind_of(value)}")
    return tuple(_message_of(item, column) for item in cast("list[Any]", value))


def _message_of(value: Any, column: str) -> Message:
    if not isinstance(value, dict):
        raise RowError(f"{column!r} must hold messages with 'role' and 'content', found {kind_of(value)}")
    entry = cast(Row, value)
    role, content = entry.get("role"), entry.get("content")
    if role not in ROLES:
        raise RowError(f"unknown role {role!r} in {column!r}; allowed: {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise RowError(f"the content of a message in {column!r} must be a text, found {kind_of(content)}")
    return Message(role, content)


def texts_of(value: Any, column: str) -> list[str]:
    if not isinstance(value, list) or not value:
        raise RowError(f"{column!r} must be a list of texts, found {kind_of(value)}")
    return [text_of(item, column) for item in cast("list[Any]", value)]


def text_of(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"{column!r} must be a text, found {kind_of(value)}")
    return value


def number_of(value: Any, column: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError(f"{column!r} must be a number, found {kind_of(value)}")
    return float(value)


def boolean_of(value: Any, column: str) -> bool:
    if not isinstance(value, bool):
        raise RowError(f"{column!r} must be true or false, found {kind_of(value)}")
    return value


def ids_of(value: Any, column: str) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not _whole_numbers(cast("list[Any]", value)):
        raise RowError(f"{column!r} must be a list of whole numbers from 0 up, found {kind_of(value)}")
    return tuple(cast("list[int]", value))


def _whole_numbers(values: list[Any]) -> bool:
    """True when all are whole numbers from 0 up; without a loop in Python, since token ids are most of a file."""
    return set(map(type, values)) <= {int} and min(values, default=0) >= 0


def kind_of(value: Any) -> str:
    """What JSON calls the type of `value`."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "a text", dict: "an object"}
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return "nothing" if value is None else names.get(type(value), type(value).__name__)
