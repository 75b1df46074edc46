"""A prompt with a better and a worse response -> one row in the format of a training program.

    row = PAIR_FORMATS["trl"](pair)

Beside what its reader takes every row has the columns of EXTRAS, null where not known. None of the programs computes
with them. The margin is not called `margin`: the reward trainers of TRL and OpenRLHF take that into their loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from selfjudge.records import Example, Message
from selfjudge.shapes import MARGIN, SPEAKERS
from selfjudge.values import Row, RowError

EXTRAS = ("score_chosen", "score_rejected", MARGIN)
"""The judge's scores in its unit, and the target z: the difference of the two log-strengths in nats."""


@dataclass(frozen=True)
class Pair:
    """`score_*` and `margin` are NaN where not known."""

    id: str
    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    score_chosen: float = math.nan
    score_rejected: float = math.nan
    margin: float = math.nan

    def row(self, **columns: object) -> Row:
        """The columns of a format between the id and the extra ones."""
        extras = (self.score_chosen, self.score_rejected, self.margin)
        known = (None if math.isnan(value) else value for value in extras)
        return {"id": self.id, **columns, **dict(zip(EXTRAS, known, strict=True))}


def pairs_of(example: Example) -> Iterator[Pair]:
    """Every better response with every worse one: by `strengths`, else by `gold`. Raises RowError without either."""
    better = list(_better_and_worse(example))
    for right, wrong in better:
        yield Pair(
            id=example.id if len(better) == 1 else f"{example.id}-{right}-{wrong}",
            messages=example.messages,
            chosen=example.responses[right].text,
            rejected=example.responses[wrong].text,
            score_chosen=example.scores[right].value if example.scores else math.nan,
            score_rejected=example.scores[wrong].value if example.scores else math.nan,
            margin=example.strengths[right] - example.strengths[wrong] if example.strengths else math.nan,
        )


def _better_and_worse(example: Example) -> Iterator[tuple[int, int]]:
    if not example.strengths and example.gold is None:
        problem = "has neither strengths (`selfjudge select` adds them) nor chosen and rejected responses"
        raise RowError(f"{example.id} {problem}")
    right = set(example.gold or ())
    goodness = example.strengths or [float(index in right) for index in range(len(example.responses))]
    numbers = range(len(goodness))
    yield from ((i, j) for i in numbers for j in numbers if goodness[i] > goodness[j])


def _trl(pair: Pair) -> Row:
    return pair.row(prompt=_turns(pair.messages), chosen=_answer(pair.chosen), rejected=_answer(pair.rejected))


def _trl_text(pair: Pair) -> Row:
    if len(pair.messages) != 1:
        found = ", ".join(message.role for message in pair.messages)
        raise RowError(f"{pair.id} cannot be one text: its prompt has the turns {found}; use --format trl")
    return pair.row(prompt=pair.messages[0].content, chosen=pair.chosen, rejected=pair.rejected)


def _llama_factory(pair: Pair) -> Row:
    names = {role: speaker for speaker, role in reversed(SPEAKERS.items())}
    turns = [{"from": names[message.role], "value": message.content} for message in pair.messages]
    chosen, rejected = ({"from": names["assistant"], "value": text} for text in (pair.chosen, pair.rejected))
    return pair.row(conversations=turns, chosen=chosen, rejected=rejected)


def _axolotl(pair: Pair) -> Row:
    return pair.row(messages=_turns(pair.messages), chosen=_answer(pair.chosen)[0], rejected=_answer(pair.rejected)[0])


def _nemo_rl(pair: Pair) -> Row:
    ranked = [{"rank": rank, "completion": _answer(text)} for rank, text in enumerate((pair.chosen, pair.rejected))]
    return pair.row(context=_turns(pair.messages), completions=ranked)


def _ms_swift(pair: Pair) -> Row:
    return pair.row(messages=_turns(pair.messages) + _answer(pair.chosen), rejected_response=pair.rejected)


def _ultrafeedback(pair: Pair) -> Row:
    turns = _turns(pair.messages)
    chosen, rejected = (turns + _answer(text) for text in (pair.chosen, pair.rejected))
    return pair.row(prompt=pair.messages[-1].content, chosen=chosen, rejected=rejected)


def _turns(messages: tuple[Message, ...]) -> list[Row]:
    return [message._asdict() for message in messages]


def _answer(text: str) -> list[Row]:
    return [{"role": "assistant", "content": text}]


PAIR_FORMATS: dict[str, Callable[[Pair], Row]] = {
    "trl": _trl,
    "trl-text": _trl_text,
    "llama-factory": _llama_factory,
    "axolotl": _axolotl,
    "openrlhf": _trl,
    "nemo-rl": _nemo_rl,
    "ms-swift": _ms_swift,
    "ultrafeedback": _ultrafeedback,
}
"""Those of their conversational formats that need no setting beyond the name: OpenRLHF's is TRL's."""
