"""Rows as other projects write them -> the columns of `selfjudge.forms`. No files and no Examples here.

    >>> own_columns({"instruction": "2 + 2?", "chosen_response": "4", "rejected_response": "5"})
    {'instruction': '2 + 2?', 'chosen': '4', 'rejected': '5'}

A shape is recognised by columns that nothing else has; a row without them goes through untouched. Several may apply
one after the other (ShareGPT turns, then ratings). Rows that need no rewriting (TRL, RewardBench, OpenRLHF, axolotl)
are read by `selfjudge.forms` itself; docs/files.md lists both.

Where a row says how good each response is, `gold` holds those that nothing beats. It is empty where none is better:
a preference of 0, equal ratings, or an overall rating and ratings by aspect that name different best ones.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeGuard, cast

from selfjudge.values import Row, RowError, conversation_of, kind_of, number_of, text_of

SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
"""ShareGPT's `from` -> role."""
RATINGS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_avg_rating", "rejected_avg_rating"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
)
"""Columns with the ratings of a pair; they become its scores."""
MARGIN = "margin_nats"
"""Column with a pair's target z in nats, as `selfjudge export` writes it."""
UNRATED = "no rating in the file"
HUMAN = "\n\nHuman:"
STRONGEST_PREFERENCE = 3
"""HelpSteer3 goes from -3 (the first response is much better) to 3."""


class Shape(NamedTuple):
    """One way of writing a row: how it is called in messages, what a whole row has, and what to do with it."""

    name: str
    columns: str
    needs: tuple[str, ...]
    recognises: Callable[[Row], bool]
    rewrite: Callable[[Row], Row]


def own_columns(row: Row) -> Row:
    """The row in the columns of `selfjudge.forms`. Raises RowError for half a row of a shape that is recognised."""
    if MARKS.isdisjoint(row):
        return row
    for shape in SHAPES:
        if shape.recognises(row):
            missing = [column for column in shape.needs if row.get(column) is None]
            if missing:
                problem = f"without {' and '.join(missing)}; such a row has {shape.columns}"
                raise RowError(f"recognised as {shape.name}, but {problem}")
            try:
                row = shape.rewrite(row)
            except RowError as error:
                raise RowError(f"recognised as {shape.name}: {error}; such a row has {shape.columns}") from None
    return row


def _has(row: Row, *columns: str) -> bool:
    return all(row.get(column) is not None for column in columns)


def _without(row: Row, *columns: str) -> Row:
    return {name: value for name, value in row.items() if name not in columns}


def _objects(value: Any, column: str) -> list[Row]:
    entries = cast("list[Any]", value) if isinstance(value, list) else []
    if not entries or not all(isinstance(entry, dict) for entry in entries):
        raise RowError(f"{column!r} must be a list of objects, found {kind_of(value)}")
    return cast("list[Row]", entries)


def _of_objects_with(value: Any, key: str) -> TypeGuard[list[Row]]:
    """A list of objects of which the first has `key`."""
    first = cast("list[Any]", value)[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and cast(Row, first).get(key) is not None


# --- conversations


def _is_sharegpt(row: Row) -> bool:
    return _has(row, "conversations") and not _has(row, "messages")


def _from_sharegpt(row: Row) -> Row:
    """`from` and `value` -> `role` and `content`, in the prompt and in the pair."""
    turns = [_turn(entry, "conversations") for entry in _objects(row["conversations"], "conversations")]
    pair = {side: _turn(row[side], side) for side in ("chosen", "rejected") if isinstance(row.get(side), dict)}
    return {**_without(row, "conversations"), "messages": turns, **pair}


def _turn(entry: Row, column: str) -> Row:
    if "from" not in entry:
        return entry
    if entry["from"] not in SPEAKERS:
        raise RowError(f"unknown speaker {entry['from']!r} in {column!r}; allowed: {', '.join(SPEAKERS)}")
    return {"role": SPEAKERS[entry["from"]], "content": text_of(entry.get("value"), f"{column}.value")}


def _is_transcript(row: Row) -> bool:
    return any(_begins_with_human(row.get(column)) for column in ("prompt", "chosen", "rejected"))


def _begins_with_human(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(HUMAN)


def _from_transcript(row: Row) -> Row:
    found = [side for side in ("chosen", "rejected") if _begins_with_human(row.get(side))]
    if len(found) == 1:
        raise RowError(f"only {found[0]!r} is a text that begins with '\\n\\nHuman:'")
    columns = [*found, *(["prompt"] if _begins_with_human(row.get("prompt")) else [])]
    return row | {column: _turns_of(row[column]) for column in columns}


def _turns_of(text: str) -> list[Row]:
    """One text with `Human:` and `Assistant:` turns -> messages; a prompt's last, empty `Assistant:` is no turn."""
    parts = re.split(r"\n\n(Human|Assistant):", text)[1:]
    turns = [
        {"role": {"Human": "user", "Assistant": "assistant"}[who], "content": said.strip()}
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns


# --- several responses, ranked or rated


def _is_ranked(row: Row) -> bool:
    completions = row.get("completions")
    if not _of_objects_with(completions, "completion"):
        return False
    return "rank" in completions[0] or isinstance(completions[0]["completion"], list)


def _from_ranked(row: Row) -> Row:
    """The least rank is the best; two of them are a pair, which may have ratings beside it."""
    entries = _objects(row["completions"], "completions")
    ranks = [number_of(entry.get("rank"), "completions.rank") for entry in entries]
    texts = [_only_answer(entry.get("completion"), "completions.completion") for entry in entries]
    rest = {**_without(row, "context", "completions"), "messages": _messages(row["context"])}
    if len(set(ranks)) == len(ranks) == 2:
        chosen, rejected = texts if ranks[0] < ranks[1] else texts[::-1]
        return {**rest, "chosen": chosen, "rejected": rejected}
    return {**rest, **_ordered(texts, [-x for x in ranks])}


def _only_answer(value: Any, column: str) -> str:
    turns = conversation_of(value, column)
    if len(turns) != 1 or turns[0].role != "assistant":
        raise RowError(f"{column!r} must hold one assistant turn, found {', '.join(turn.role for turn in turns)}")
    return turns[0].content


def _messages(context: Any) -> Any:
    return [{"role": "user", "content": context}] if isinstance(context, str) else context


def _is_nectar(row: Row) -> bool:
    return _of_objects_with(row.get("answers"), "rank")


def _from_nectar(row: Row) -> Row:
    entries = _objects(row["answers"], "answers")
    texts = [text_of(entry.get("answer"), "answers.answer") for entry in entries]
    ranks = [number_of(entry.get("rank"), "answers.rank") for entry in entries]
    return {**_without(row, "answers"), **_ordered(texts, [-x for x in ranks])}


def _ordered(texts: list[str], goodness: Sequence[float]) -> Row:
    """Responses, and which of them nothing beats."""
    return {"responses": texts, "gold": _unbeaten(goodness)}


def _unbeaten(goodness: Sequence[float]) -> list[int]:
    best = [index for index, value in enumerate(goodness) if value == max(goodness)]
    return best if len(best) < len(goodness) else []


def _is_helpsteer3(row: Row) -> bool:
    return _has(row, "overall_preference") and not _has(row, "chosen") and not _has(row, "responses")


def _from_helpsteer3(row: Row) -> Row:
    preference = number_of(row["overall_preference"], "overall_preference")
    if abs(preference) > STRONGEST_PREFERENCE:
        raise RowError(f"overall_preference must be from -3 to 3, found {row['overall_preference']}")
    texts = [text_of(row[column], column) for column in ("response1", "response2")]
    rest = _without(row, "context", "response1", "response2", "overall_preference")
    return {**rest, "messages": _messages(row["context"]), **_ordered(texts, (-preference, preference))}


def _is_ultrafeedback(row: Row) -> bool:
    return _of_objects_with(row.get("completions"), "response")


def _from_ultrafeedback(row: Row) -> Row:
    """Scores are the overall ratings, or the means over the aspects where no response has an overall one."""
    entries = _objects(row["completions"], "completions")
    texts = [text_of(entry.get("response"), "completions.response") for entry in entries]
    overall = [_rating(entry.get("overall_score")) for entry in entries]
    means = [_mean_rating(entry) for entry in entries]
    tops = [set(_unbeaten(values)) for values in (overall, means) if all(map(math.isfinite, values))]
    gold = sorted(set.intersection(*tops)) if tops else None
    scores = overall if any(map(math.isfinite, overall)) else means
    return {**_without(row, "completions"), "responses": texts, "gold": gold, **_scores(scores)}


def _mean_rating(entry: Row) -> float:
    """The mean that the file states, else that of the aspects that are rated; NaN without any."""
    if entry.get("fine-grained_score") is not None:
        return _rating(entry["fine-grained_score"])
    aspects = entry.get("annotations")
    kept = [_rating(a.get("Rating")) for a in cast(Row, aspects or {}).values() if isinstance(a, dict)]
    known = [value for value in kept if math.isfinite(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _rating(value: Any) -> float:
    """A number, or a text that is one; NaN for anything else, such as "N/A"."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        number = float(value)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _scores(values: Sequence[float]) -> Row:
    """The column `scores`; none where nothing is rated."""
    if not any(map(math.isfinite, values)):
        return {}
    return {"scores": [{"value": x} if math.isfinite(x) else {"value": None, "reason": UNRATED} for x in values]}


# --- pairs


def _is_argilla(row: Row) -> bool:
    return _has(row, "chosen_response") and not _has(row, "chosen")


def _from_argilla(row: Row) -> Row:
    rest = _without(row, "chosen_response", "rejected_response", "chosen", "rejected")
    return {**rest, "chosen": row["chosen_response"], "rejected": row["rejected_response"]}


def _is_swift(row: Row) -> bool:
    return not _has(row, "chosen") and (_has(row, "rejected_response") or _has(row, "rejected_messages"))


def _from_swift(row: Row) -> Row:
    """The chosen answer stands at the end of the messages, or in `response` beside a `query`."""
    rest = _without(row, "rejected_response", "rejected_messages", "response", "chosen", "rejected")
    if _has(row, "rejected_messages"):
        conversation_of(row.get("messages"), "messages")
        return {**rest, "chosen": row["messages"], "rejected": row["rejected_messages"]}
    if not _has(row, "messages"):
        if not _has(row, "response"):
            raise RowError("no chosen answer")
        return {**rest, "chosen": row["response"], "rejected": row["rejected_response"]}
    last = conversation_of(row["messages"], "messages")[-1]
    if last.role != "assistant":
        raise RowError(f"the messages must end with the chosen answer, found a {last.role} turn")
    return {**rest, "chosen": last.content, "rejected": row["rejected_response"]}


def _is_rated_pair(row: Row) -> bool:
    return _is_single(row.get("chosen")) and _is_single(row.get("rejected")) and (_has(row, MARGIN) or _rated(row))


def _rated(row: Row) -> bool:
    return any(_has(row, better) or _has(row, worse) for better, worse in RATINGS)


def _is_single(value: Any) -> bool:
    """One response: a text, an object or a conversation, not a list of texts."""
    return isinstance(value, str | dict) or _of_objects_with(value, "role")


def _from_rated_pair(row: Row) -> Row:
    """Ratings become scores, a margin z the strengths z / 2 and -z / 2; what the row itself has stays."""
    better, worse = next((names for names in RATINGS if _has(row, names[0]) or _has(row, names[1])), ("", ""))
    found = _scores((_rating(row.get(better)), _rating(row.get(worse))))
    margin = _rating(row.get(MARGIN))
    if math.isfinite(margin):
        found["strengths"] = [margin / 2, -margin / 2]
    return {**found, **{name: value for name, value in row.items() if value is not None or name not in found}}


SHAPES = (
    Shape(
        "ShareGPT turns (LLaMA-Factory)",
        "conversations: a list of {from, value}; for a pair also chosen and rejected: {from, value} or texts",
        (),
        _is_sharegpt,
        _from_sharegpt,
    ),
    Shape(
        "ranked completions (NeMo-RL)",
        "context: messages or a text, completions: a list of {rank, completion: [one assistant message]}",
        ("context",),
        _is_ranked,
        _from_ranked,
    ),
    Shape(
        "ranked answers (Nectar)",
        "prompt, answers: a list of {answer, rank}",
        ("prompt",),
        _is_nectar,
        _from_nectar,
    ),
    Shape(
        "HelpSteer3",
        "context: messages or a text, response1, response2, overall_preference: -3 to 3",
        ("context", "response1", "response2"),
        _is_helpsteer3,
        _from_helpsteer3,
    ),
    Shape(
        "UltraFeedback",
        "instruction, completions: a list of {response, overall_score, annotations}",
        ("instruction",),
        _is_ultrafeedback,
        _from_ultrafeedback,
    ),
    Shape(
        "a pair of chosen_response and rejected_response (Argilla)",
        "instruction or prompt, chosen_response, rejected_response",
        ("rejected_response",),
        _is_argilla,
        _from_argilla,
    ),
    Shape(
        "ms-swift",
        "messages that end with the chosen answer (or query and response), and rejected_response or rejected_messages",
        (),
        _is_swift,
        _from_swift,
    ),
    Shape(
        "a transcript (Anthropic HH)",
        "chosen and rejected: texts of '\\n\\nHuman:' and '\\n\\nAssistant:' turns; or a prompt of such turns",
        (),
        _is_transcript,
        _from_transcript,
    ),
    Shape("a pair with ratings", "chosen, rejected and a rating of each", (), _is_rated_pair, _from_rated_pair),
)
"""In the order in which they are looked for."""

MARKS = frozenset(
    (
        *("conversations", "completions", "answers", "overall_preference", "chosen_response", "rejected_response"),
        *("rejected_messages", "prompt", "chosen", "rejected"),
    )
)
"""A row without any of these columns has none of the shapes."""
