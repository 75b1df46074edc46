"""What a row of a user's file means: one plain object -> Example. No files here; `selfjudge.readers` opens them.

    >>> example_from_row({"prompt": "What is 2 + 2?", "chosen": "4", "rejected": ["5", "22"]}).gold
    (0,)

Accepted columns (None counts as absent; the first one that is present wins):

    prompt      messages, prompt, instruction (+ input, joined by a blank line), question,
                turns (the first is the prompt, the others go to tags.later_turns), input, query, context_messages;
                each but turns may hold messages; instances (its first input and output belong to `instruction`);
                history (pairs of earlier turns) before a prompt that is a text; system or system_prompt in front
    responses   chosen + rejected (text, a list of texts, a message, or a conversation whose earlier turns are the
                prompt): gold = the chosen ones; output_1 + output_2 + label (1 or 2); responses, response,
                completions, completion, output (text, an object with `text` or `completion`, a list of either, a
                conversation); without any of these, a last assistant turn of the prompt; a single completion or last
                assistant turn with a label that is true or false, or any with such a kto_tag: gold = it or none
    reference   reference, answer, reference_answer (text or a number; of a list, one entry a turn, the first)
    as written by Example.to_json      id, category, gold, scores, strengths, prompt_ids, tags

Three chosen and three rejected texts with a `subset` are a row of RM-Bench: tags.styles names each response's style.
Rows in the shapes of other projects are rewritten into these columns first (`selfjudge.shapes`).
Of the other columns only TAG_COLUMNS are kept, as tags; whatever else should travel along belongs into `tags`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, NamedTuple, cast

from selfjudge.records import CATEGORIES, Example, Message, Response, Score
from selfjudge.shapes import own_columns
from selfjudge.values import Row, RowError, boolean_of, conversation_of, ids_of, kind_of, number_of, text_of, texts_of

PROMPT_COLUMNS = ("messages", "prompt", "instruction", "question", "turns", "input", "query", "context_messages")
RESPONSE_COLUMNS = ("responses", "response", "completions", "completion", "output")
REFERENCE_COLUMNS = ("reference", "answer", "reference_answer")
SYSTEM_COLUMNS = ("system", "system_prompt")
TAG_COLUMNS = (
    *("subset", "source", "dataset", "split", "domain", "section", "capability", "task", "task_id", "language"),
    *("type", "label", "key", "index", "question_id", "model", "chosen_model", "rejected_model", "bug_type"),
)
TAG_CHARACTERS = 200
"""Longer texts are no tags: every later file would repeat them."""
RM_BENCH_STYLES = ("concise", "detailed", "detailed markdown")


class Answer(NamedTuple):
    """A response and, where it came as a conversation, the turns before it."""

    before: tuple[Message, ...]
    response: Response


def example_from_row(row: Row, keep_category: bool = True) -> Example:
    """The Example that `row` describes; its id is empty where the row has none. Raises RowError.

    Without `keep_category` the column `category` is of another vocabulary and becomes the tag `source_category`.
    """
    row = own_columns(_with_first_instance(row))
    answers, gold = _answers(row)
    stated = _stated_prompt(row)
    messages, spoken = _split_last_answer(_joined_prompt(row, stated, answers), answers)
    responses = tuple(answer.response for answer in answers) or spoken
    return Example(
        id=_id(row.get("id")),
        messages=_checked_prompt(_with_system(row, messages)),
        category=_category(row.get("category")) if keep_category else None,
        responses=responses,
        gold=_gold(row["gold"], len(responses)) if row.get("gold") is not None else gold or _thumb(row, responses),
        reference=_reference(row),
        prompt_ids=ids_of(row.get("prompt_ids"), "prompt_ids"),
        scores=tuple(_score(entry) for entry in _one_per_response(row, "scores", len(responses))),
        strengths=tuple(number_of(x, "strengths") for x in _one_per_response(row, "strengths", len(responses))),
        tags=_tags(row, keep_category),
    )


def _first_present(row: Row, columns: tuple[str, ...]) -> str | None:
    return next((column for column in columns if row.get(column) is not None), None)


def _with_first_instance(row: Row) -> Row:
    """Self-Instruct keeps input and output in `instances`; without its input such an instruction is incomplete."""
    instances = row.get("instances")
    if not isinstance(instances, list) or not instances or not isinstance(instances[0], dict):
        return row
    first = cast(Row, instances[0])
    return {**row, "input": first.get("input"), "output": first.get("output")}


# --- the prompt


def _stated_prompt(row: Row) -> tuple[Message, ...]:
    """The conversation in the prompt column, () where there is none."""
    column = _first_present(row, PROMPT_COLUMNS)
    if column is None:
        return ()
    value = row[column]
    if column == "turns":
        value = texts_of(value, "turns")[0]
    if column == "instruction" and isinstance(row.get("input"), str) and row["input"].strip():
        value = f"{text_of(value, column)}\n\n{row['input']}"
    if column == "messages" or isinstance(value, list):
        return conversation_of(value, column)
    return (*_history(row.get("history")), Message("user", text_of(value, column)))


def _history(value: Any) -> Iterator[Message]:
    """Earlier turns, as Alpaca files keep them: [[request, answer], ...]."""
    if not isinstance(value, list | None):
        raise RowError(f"'history' must be a list of [request, answer], found {kind_of(value)}")
    for pair in cast("list[Any]", value or []):
        turns = texts_of(pair, "history")
        if len(turns) != 2:
            raise RowError(f"'history' must hold pairs [request, answer], found {len(turns)} texts")
        yield from map(Message, ("user", "assistant"), turns)


def _joined_prompt(row: Row, stated: tuple[Message, ...], answers: list[Answer]) -> tuple[Message, ...]:
    """The prompt column and the turns before the responses are the same prompt, or one of them is missing."""
    prompts = {answer.before for answer in answers if answer.before}
    if len(prompts) > 1:
        raise RowError("its responses are conversations that differ before the last turn; they must share the prompt")
    before = next(iter(prompts), ())
    if not stated and not before:
        raise RowError(_no_prompt(row))
    if not stated or not before or _dropping_answer(stated) == before:
        return before or stated
    if len(stated) == 1 and stated[0] in before:  # a prompt text beside conversations that hold its whole context
        return before
    raise RowError("the prompt column and the turns before its responses differ; drop one of them")


def _no_prompt(row: Row) -> str:
    if any(column in row for column in PROMPT_COLUMNS):
        return "the prompt is empty"
    found = [str(column) for column in row]
    near = ((column, get_close_matches(column.lower(), PROMPT_COLUMNS, 1)) for column in found)
    hints = [f"; did you mean {matches[0]!r} for {column!r}?" for column, matches in near if matches]
    shown = ", ".join(found[:12]) + (", ..." if len(found) > 12 else "")
    return f"no prompt: found columns {shown or '(none)'}; one of {', '.join(PROMPT_COLUMNS)} is needed{''.join(hints)}"


def _dropping_answer(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    return messages[:-1] if messages[-1].role == "assistant" else messages


def _split_last_answer(
    messages: tuple[Message, ...], answers: list[Answer]
) -> tuple[tuple[Message, ...], tuple[Response, ...]]:
    """The prompt, and the answer that stood behind it; beside other responses that answer must be one of them."""
    if messages[-1].role != "assistant":
        return messages, ()
    spoken = Response(messages[-1].content)
    if answers and spoken.text not in {answer.response.text for answer in answers}:
        raise RowError("messages end with an assistant turn that is none of the responses; end them with a user turn")
    return messages[:-1], (spoken,)


def _with_system(row: Row, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    column = _first_present(row, SYSTEM_COLUMNS)
    if column is None or not text_of(row[column], column).strip():
        return messages
    system = Message("system", row[column])
    if messages[:1] == (system,):
        return messages
    if messages and messages[0].role == "system":
        raise RowError(f"the column {column!r} and the system turn of the messages differ; drop one of them")
    return (system, *messages)


def _checked_prompt(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    if not messages or messages[-1].role != "user":
        last = messages[-1].role if messages else "no"
        raise RowError(f"the prompt must end with a user turn, found {last} turn")
    if not messages[-1].content.strip():
        raise RowError("the prompt is empty")
    return messages


# --- the responses


def _answers(row: Row) -> tuple[list[Answer], tuple[int, ...] | None]:
    """All responses of the row, and which are right."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if (chosen is None) != (rejected is None):
        raise RowError("chosen and rejected are needed together, found only one of them")
    if chosen is not None:
        right, wrong = list(_each_answer(chosen, "chosen")), list(_each_answer(rejected, "rejected"))
        return right + wrong, tuple(range(len(right)))
    if row.get("output_1") is not None and row.get("output_2") is not None:
        both = [*_each_answer(row["output_1"], "output_1"), *_each_answer(row["output_2"], "output_2")]
        return both, _gold_of_label(row.get("label"))
    column = _first_present(row, RESPONSE_COLUMNS)
    return ([] if column is None else list(_each_answer(row[column], column))), None


def _each_answer(value: Any, column: str) -> Iterator[Answer]:
    """A text, an object, a conversation, or a list of these."""
    if isinstance(value, dict) and "role" in value:
        value = [value]
    if not isinstance(value, list):
        yield Answer((), _response(value, column))
        return
    items = cast("list[Any]", value)
    if items and isinstance(items[0], dict) and "role" in items[0]:
        yield _spoken_answer(conversation_of(items, column), column)
        return
    for item in items:
        yield from _each_answer(item, column)


def _spoken_answer(messages: tuple[Message, ...], column: str) -> Answer:
    if messages[-1].role != "assistant":
        raise RowError(f"the conversation in {column!r} must end with an assistant turn")
    return Answer(messages[:-1], Response(messages[-1].content))


def _response(value: Any, column: str) -> Response:
    if not isinstance(value, dict):
        return Response(text_of(value, column))
    entry = cast(Row, value)
    text = entry.get("text") if entry.get("text") is not None else entry.get("completion")
    if not isinstance(text, str):
        raise RowError(f"each object in {column!r} needs a text in 'text' or 'completion', found {kind_of(text)}")
    finished, logprob = entry.get("finished"), entry.get("logprob")
    return Response(
        text=text,
        token_ids=ids_of(entry.get("token_ids"), f"{column}.token_ids"),
        logprob=None if logprob is None else number_of(logprob, f"{column}.logprob"),
        finished=True if finished is None else boolean_of(finished, f"{column}.finished"),
    )


def _thumb(row: Row, responses: tuple[Response, ...]) -> tuple[int, ...] | None:
    """A thumb up or down for the only response (KTO); None where the columns leave open what a label is about."""
    told = row.get("kto_tag")
    if told is None and _first_present(row, RESPONSE_COLUMNS) in (None, "completion"):
        told = row.get("label")
    if len(responses) != 1 or not isinstance(told, bool):
        return None
    return (0,) if told else ()


def _gold_of_label(label: Any) -> tuple[int, ...] | None:
    if label is None:
        return None
    if isinstance(label, bool) or str(label) not in ("1", "2"):
        raise RowError(f"label must be 1 or 2 (output_1 or output_2 is better), found {label!r}")
    return (int(label) - 1,)


def _gold(value: Any, num_responses: int) -> tuple[int, ...]:
    gold = ids_of(value, "gold") or ()
    wrong = [index for index in gold if index >= num_responses]
    if wrong or len(set(gold)) < len(gold):
        raise RowError(
            f"gold must be different indices of its {num_responses} responses, counted from 0, found {value}"
        )
    return gold


# --- the other fields


def _id(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowError(f"id must be a text or a whole number, found {kind_of(value)}")
    return str(value)


def _category(value: Any) -> str | None:
    if value is None or value == "":
        return None
    if value in CATEGORIES:
        return cast(str, value)
    near = get_close_matches(str(value).lower(), CATEGORIES, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    allowed = ", ".join(CATEGORIES)
    raise RowError(
        f"unknown category {value!r}; allowed: {allowed}; {hint}Without the column the model finds the category itself"
    )


def _reference(row: Row) -> str | None:
    column = _first_present(row, REFERENCE_COLUMNS)
    if column is None:
        return None
    value = row[column]
    if isinstance(value, list):
        value = texts_of(value, column)[0]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    return text_of(value, column) or None


def _score(value: Any) -> Score:
    if not isinstance(value, dict):
        raise RowError(f"scores must hold objects with 'value', found {kind_of(value)}")
    entry = cast(Row, value)
    score, label_mass = (
        math.nan if entry.get(name) is None else number_of(entry[name], f"scores.{name}")
        for name in ("value", "label_mass")
    )
    truncated, reason, evidence = entry.get("truncated"), entry.get("reason"), entry.get("evidence")
    if evidence is not None and not isinstance(evidence, dict):
        raise RowError(f"scores.evidence must be an object, found {kind_of(evidence)}")
    return Score(
        value=score,
        label_mass=label_mass,
        truncated=False if truncated is None else boolean_of(truncated, "scores.truncated"),
        reason=None if reason is None else text_of(reason, "scores.reason"),
        evidence=cast(Row, evidence or {}),
    )


def _one_per_response(row: Row, column: str, num_responses: int) -> list[Any]:
    value = row.get(column)
    if value is None or value == []:
        return []
    if not isinstance(value, list) or len(cast("list[Any]", value)) != num_responses:
        found = len(cast("list[Any]", value)) if isinstance(value, list) else kind_of(value)
        raise RowError(
            f"{column} must be a list with one entry for each of its {num_responses} responses, found {found}"
        )
    return cast("list[Any]", value)


def _tags(row: Row, keep_category: bool) -> dict[str, Any]:
    given = row.get("tags")
    if given is not None and not isinstance(given, dict):
        raise RowError(f"tags must be an object, found {kind_of(given)}")
    tags = {column: row[column] for column in TAG_COLUMNS if column in row and _is_tag(row[column])}
    if not keep_category and _is_tag(row.get("category")):
        tags["source_category"] = row["category"]
    if _first_present(row, PROMPT_COLUMNS) == "turns" and len(row["turns"]) > 1:
        tags["later_turns"] = row["turns"][1:]
    if _is_rm_bench(row):
        tags["styles"] = [*RM_BENCH_STYLES, *RM_BENCH_STYLES]
    return tags | cast(Row, given or {})


def _is_tag(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) or (isinstance(value, str) and 0 < len(value) <= TAG_CHARACTERS)


def _is_rm_bench(row: Row) -> bool:
    lists = [cast("list[Any]", row[name]) for name in ("chosen", "rejected") if isinstance(row.get(name), list)]
    of_three_texts = [len(texts) == 3 and all(isinstance(text, str) for text in texts) for texts in lists]
    return of_three_texts == [True, True] and row.get("subset") is not None
