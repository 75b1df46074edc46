"""The one data shape: a prompt, its responses, what was found out about them.

    >>> example = Example(id="1", messages=(Message("user", "What is 2 + 2?"),), responses=(Response("4"),))
    >>> Example.from_json(example.to_json()) == example
    True

Every step reads and writes these, one JSON object a line; a step adds fields and drops none that it does not replace.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

CATEGORIES = ("chat", "code", "math", "safety")


class Message(NamedTuple):
    """One turn of a conversation; `role` is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True)
class Response:
    """One answer to the prompt.

    `token_ids` are the sampled ids, including the end token where the model ended by itself. `logprob` is the sum over
    them of log p(token | all before), in nats, under the sampling model at temperature 1 without truncation.
    """

    text: str
    token_ids: tuple[int, ...] | None = None
    logprob: float | None = None
    finished: bool = True
    """False when generation stopped at the token limit, before an end token."""


@dataclass(frozen=True)
class Score:
    """What a judge says of one response.

    `value` is higher for a better response, NaN where missing (`reason` says why). Its unit is the judge's: nats of
    log-odds (yes-no, pairwise, committee), a grade from 1 to 5 (rating), a logit (reward-model). `label_mass` is the
    probability on all label tokens, NaN where the judge has none; `truncated` marks a response whose middle was cut to
    fit the context. `evidence` is what the value was computed from, for computing it again without a model.
    """

    value: float
    label_mass: float = math.nan
    truncated: bool = False
    reason: str | None = None
    evidence: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Example:
    """A prompt with 0..K responses; `scores` and `strengths`, where present, have one entry per response."""

    id: str
    messages: tuple[Message, ...]
    category: str | None = None
    """One of CATEGORIES, or None when not known yet."""
    responses: tuple[Response, ...] = ()
    gold: tuple[int, ...] | None = None
    """Indices of the right responses, None when not known."""
    reference: str | None = None
    """The right answer as text, for prompts that have one."""
    prompt_ids: tuple[int, ...] | None = None
    """Token ids of the rendered prompt from which `responses` were sampled."""
    scores: tuple[Score, ...] = ()
    strengths: tuple[float, ...] = ()
    """Log-strength of each response (Bradley-Terry scale, nats, best first); the target of a pair is a difference."""
    tags: dict[str, Any] = field(default_factory=dict[str, Any])

    def to_json(self) -> dict[str, Any]:
        """A plain object; fields that are None or empty are left out, NaN becomes null."""
        row: dict[str, Any] = {"id": self.id, "category": self.category}
        row["messages"] = [message._asdict() for message in self.messages]
        row["prompt_ids"] = self.prompt_ids and list(self.prompt_ids)
        row["responses"] = [_response_to_json(response) for response in self.responses]
        row["scores"] = [_score_to_json(score) for score in self.scores]
        row["strengths"] = list(self.strengths)
        row["gold"] = None if self.gold is None else list(self.gold)
        row["reference"] = self.reference
        row["tags"] = self.tags
        kept_empty = ("gold",)
        return {key: value for key, value in row.items() if value or (key in kept_empty and value is not None)}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Example:
        """The inverse of `to_json`; the readers in `selfjudge.readers` check a user's rows before they come here."""
        return cls(
            id=row["id"],
            messages=tuple(Message(m["role"], m["content"]) for m in row["messages"]),
            category=row.get("category"),
            responses=tuple(_response_from_json(r) for r in row.get("responses", ())),
            gold=None if row.get("gold") is None else tuple(row["gold"]),
            reference=row.get("reference"),
            prompt_ids=tuple(row["prompt_ids"]) if row.get("prompt_ids") else None,
            scores=tuple(_score_from_json(s) for s in row.get("scores", ())),
            strengths=tuple(row.get("strengths", ())),
            tags=row.get("tags", {}),
        )


def _response_to_json(response: Response) -> dict[str, Any]:
    row: dict[str, Any] = {"text": response.text}
    if response.token_ids is not None:
        row["token_ids"] = list(response.token_ids)
    if response.logprob is not None:
        row["logprob"] = response.logprob
    if not response.finished:
        row["finished"] = False
    return row


def _response_from_json(row: dict[str, Any]) -> Response:
    token_ids = row.get("token_ids")
    return Response(
        text=row["text"],
        token_ids=None if token_ids is None else tuple(token_ids),
        logprob=row.get("logprob"),
        finished=row.get("finished", True),
    )


def _score_to_json(score: Score) -> dict[str, Any]:
    row: dict[str, Any] = {"value": _nan_to_none(score.value), "label_mass": _nan_to_none(score.label_mass)}
    if score.truncated:
        row["truncated"] = True
    if score.reason is not None:
        row["reason"] = score.reason
    if score.evidence:
        row["evidence"] = score.evidence
    return row


def _score_from_json(row: dict[str, Any]) -> Score:
    return Score(
        value=_none_to_nan(row["value"]),
        label_mass=_none_to_nan(row.get("label_mass")),
        truncated=row.get("truncated", False),
        reason=row.get("reason"),
        evidence=row.get("evidence", {}),
    )


def _nan_to_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _none_to_nan(value: float | None) -> float:
    return math.nan if value is None else value
