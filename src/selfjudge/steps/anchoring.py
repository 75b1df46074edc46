"""The scored rows of a round -> the verdicts that training holds on to."""

from __future__ import annotations

import math
from typing import Any

from selfjudge.anchor import Verdict, VerdictFile
from selfjudge.backends.prompts import Prompts
from selfjudge.config import OWN_JUDGE
from selfjudge.errors import ConfigError, DataError
from selfjudge.inputs import Source
from selfjudge.judges.yes_no import YesNo
from selfjudge.questions import load_questions
from selfjudge.records import Example
from selfjudge.steps import model_identity
from selfjudge.store import read_meta


def judged_with(path: str, model: str) -> dict[str, Any]:
    """The options of the judge step that wrote `path`. Raises ConfigError where `model` did not judge for itself."""
    meta = read_meta(path)
    if meta is None or meta["step"] != "judge" or not meta["done"]:
        raise ConfigError(f"--anchor-input {path}: not the finished output of selfjudge judge; give scored rows")
    found = meta["config"]
    for name, value in (OWN_JUDGE | {"model": model_identity(model)}).items():
        if found.get(name) != value:
            raise ConfigError(
                f"--anchor-input {path}: judged with {name} {found.get(name)}; the anchor holds on to the verdicts of "
                f"the model in training itself, which needs {name} {value}"
            )
    return found


def add_verdicts(rows: Source, judged: dict[str, Any], prompts: Prompts, into: VerdictFile) -> None:
    """Every distinct scored response that fits, put to the same question again."""
    questions = load_questions(judged["questions"], judged["wording"], judged["ablation"])
    judge = YesNo(NO_BACKEND, questions)
    for example in rows:
        _add(example, judge, prompts, into)
    if not len(into):
        raise DataError(f"{rows.entry['name']}: no response has a score; there is nothing for --anchor to hold on to")


NO_BACKEND: Any = None
"""Questions are made without asking them."""


def _add(example: Example, judge: YesNo, prompts: Prompts, into: VerdictFile) -> None:
    scores = {r.text: s.value for r, s in zip(example.responses, example.scores, strict=True)}
    for text, log_odds in scores.items():
        asked = None if math.isnan(log_odds) else prompts.ask(judge.request(example, text))
        if asked is not None and asked.reason is None:
            into.append(Verdict(tuple(asked.ids), asked.label_ids, log_odds))
