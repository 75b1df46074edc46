"""Section 7: single prompts with their responses, as compact rows that the page's script turns into a table.

    >>> prompt_table(run)["rows"][0]
    [0, 1, 'lab-math-1', 'math', 'What is 57 + 4?', '61', 'pair', [['61', 3.88, 0.9998, 1, 1, 7, 1, '']]]

A row is [arm, round, id, category, prompt, reference, pair, responses], a response [text, log-odds, label mass,
finished, right, count, picked, remark]: `right` is 1, 0 or null, `picked` 1 for the best and -1 for the worst.
Identical responses are one entry with their count. Of large runs only some prompts are kept, chosen by a hash of their
id, so that rounds and arms over the same prompts show the same ones.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from selfjudge.judges import JUDGES
from selfjudge.readers import hash_share
from selfjudge.report.loading import Round, Run, StepFile
from selfjudge.report.observations import is_right
from selfjudge.store import Row

PROMPTS_SHOWN = 512
"""Per round and arm at most."""
TEXT_SHOWN = 8_000_000
"""Characters of all rows together at most; of longer ones fewer prompts are shown."""


def prompt_table(run: Run, most: int = PROMPTS_SHOWN, characters: int = TEXT_SHOWN) -> dict[str, Any]:
    """The rows to embed, how many prompts there are, and how many of a round are shown."""
    found: list[list[list[Any]]] = []
    total = 0
    for place, item in ((place, item) for place, arm in enumerate(run.arms) for item in arm.rounds[1:]):
        rows, count = _chosen(item, most)
        found.append(_rows(place, item, rows))
        total += count
        most = _within(found, most, characters)  # falls with every round that is read, so memory stays bounded too
        found = [rows[:most] for rows in found]
    absolute = [JUDGES[arm.config["judge"]].absolute for arm in run.arms]
    return {
        "arms": [arm.name for arm in run.arms],
        "absolute": absolute,
        "rows": [row for rows in found for row in rows],
        "total": total,
    }


def _chosen(item: Round, most: int) -> tuple[list[Row], int]:
    return smallest_hashes(_best_source(item).rows(), most)


def smallest_hashes(rows: Iterable[Row], most: int) -> tuple[list[Row], int]:
    """The rows whose ids have the smallest hashes, in that order, without token ids; and the number of all rows."""
    seen = 0
    smallest: list[tuple[float, int, Row]] = []
    for row in rows:
        seen += 1
        entry = (-hash_share(row["id"]), -seen, _without_ids(row))
        if len(smallest) < most:
            heapq.heappush(smallest, entry)
        else:
            heapq.heappushpop(smallest, entry)
    return [row for *_, row in sorted(smallest, reverse=True)], seen


def _without_ids(row: Row) -> Row:
    """What is shown of a row: token ids would take most of the memory."""
    shown = {name: value for name, value in row.items() if name != "prompt_ids"}
    shown["responses"] = [
        {name: value for name, value in one.items() if name != "token_ids"} for one in row["responses"]
    ]
    return shown


def _best_source(item: Round) -> StepFile:
    """The judged samples, or the samples where judging is not finished."""
    return item.steps["scored"] if item.steps["scored"].state == "done" else item.steps["samples"]


def _within(groups: list[list[list[Any]]], most: int, characters: int) -> int:
    """How many rows of each group fit, `most` if all do: the same number for all groups, at least 1."""
    size = 0
    for place in range(max(len(rows) for rows in groups)):
        size += sum(len(json.dumps(rows[place], ensure_ascii=False)) for rows in groups if place < len(rows))
        if size > characters:
            return max(place, 1)
    return most


def _rows(arm: int, item: Round, rows: list[Row]) -> list[list[Any]]:
    wanted = {row["id"] for row in rows}
    pairs = {row["id"]: _without_ids(row) for row in item.steps["selected"].rows() if row["id"] in wanted}
    selected = item.steps["selected"].state == "done"
    return [_row((arm, item.number), row, pairs.get(row["id"]), selected) for row in rows]


def _row(place: tuple[int, int], row: Row, pair: Row | None, selected: bool) -> list[Any]:
    state = "pair" if pair else "none" if selected else "unknown"
    reference = row.get("reference")
    responses = _responses(row, pair, reference)
    return [*place, row["id"], row.get("category"), prompt_text(row["messages"]), reference, state, responses]


def prompt_text(messages: list[dict[str, str]]) -> str:
    """The text; with the roles where there is more than one turn."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"[{message['role']}] {message['content']}" for message in messages)


def _responses(row: Row, pair: Row | None, reference: str | None) -> list[list[Any]]:
    """Best score first; those without a score last."""
    given = row.get("scores") or [{"value": None, "label_mass": None}] * len(row["responses"])
    counts = Counter(_key(response) for response in row["responses"])
    scores = {_key(response): score for response, score in zip(row["responses"], given, strict=True)}
    firsts = {_key(response): response for response in row["responses"]}
    best, worst = (None, None) if pair is None else (_key(pair["responses"][0]), _key(pair["responses"][-1]))
    entries = [
        [*_figures(firsts[key], scores[key], reference), count, (key == best) - (key == worst), _remark(scores[key])]
        for key, count in counts.items()
    ]
    return sorted(entries, key=lambda entry: (entry[1] is None, -(entry[1] or 0.0)))


def _key(response: Row) -> tuple[str, bool]:
    return response["text"], bool(response.get("finished", True))


def _figures(response: Row, score: Row, reference: str | None) -> list[Any]:
    right = is_right(response, reference)
    flags = [int(response.get("finished", True)), None if right is None else int(right)]
    return [response["text"], rounded(score["value"]), rounded(score.get("label_mass")), *flags]


def rounded(value: float | None) -> float | None:
    """To four places, which no reader misses."""
    return None if value is None else round(value, 4)


def _remark(score: Row) -> str:
    return str(score.get("reason") or ("middle cut to fit the context" if score.get("truncated") else ""))


def embedded(table: dict[str, Any]) -> str:
    """JSON that is safe inside a script element: no `<`, `>` or `&` is left, so nothing can end the element."""
    text = json.dumps(table, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
