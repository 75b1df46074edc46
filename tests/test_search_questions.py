"""The search over wordings chooses on one part of the prompts and reports on the other."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from commands import done, summary

from selfjudge.backends import BACKENDS, BackendOptions, LabelRequest, LabelResult
from selfjudge.backends.fake import FakeBackend
from selfjudge.categories import check_routing, routing_figures
from selfjudge.questions import load_questions
from selfjudge.records import Example, Message, Response, Score
from selfjudge.steps.search_questions import AllWordings, as_toml, choose, is_development
from selfjudge.store import read_rows

QUESTIONS = load_questions()
MODEL = ["--backend", "fake", "--model", "fake", "--quiet"]
HALF = 0.5


def judged(number: int, margins: Sequence[float]) -> Example:
    """A math row whose right response leads by `margins[k]` under wording k."""
    scores = [{"log_odds": list(margins), "label_mass": [0.5] * 10}, {"log_odds": [0.0] * 10, "label_mass": [0.5] * 10}]
    return Example(
        f"e{number}",
        (Message("user", f"What is {number} + 1?"),),
        "math",
        (Response("right"), Response("wrong")),
        gold=(0,),
        scores=tuple(Score(entry["log_odds"][0], 0.5, evidence=entry) for entry in scores),
    )


def planted(number: int) -> Example:
    """Wording 4 is right on development rows alone, wording 7 on held-out ones alone, the default ties."""
    blank = judged(number, [0.0] * 10)
    winner = 3 if is_development(blank, HALF) else 6
    return judged(number, [0.0 if k == 0 else 1.0 if k == winner else -1.0 for k in range(10)])


def test_the_best_on_the_held_out_part_is_not_chosen():
    """Development: wording 4 has 1, the default .5, others 0. Held out: wording 4 has 0, wording 7 has 1.

    Spread there over 1, .5 and eight times 0: median 0. Gain over the default: 0 - .5.
    """
    figures = choose([planted(number) for number in range(200)], QUESTIONS, HALF)["math"]
    assert figures["wording"] == 4
    assert figures["question"] == QUESTIONS.questions["math"][3]
    assert (figures["development"]["value"], figures["held_out"]["value"]) == (1.0, 0.0)
    assert figures["held_out_default"]["value"] == 0.5
    assert figures["gain"]["value"] == -0.5
    assert figures["spread"] == {"min": 0.0, "median": 0.0, "max": 1.0}
    assert figures["development"]["n"] + figures["held_out"]["n"] == 200
    assert 70 < figures["development"]["n"] < 130
    assert figures["by_wording"][6] == {
        "question": QUESTIONS.questions["math"][6],
        "development": 0.0,
        "held_out": 1.0,
        "label_mass": 0.5,
    }


def test_nothing_held_out_enters_the_choice():
    """Whatever the held-out rows say, the choice stays."""
    rows = [planted(number) for number in range(60)]
    turned = [row if is_development(row, HALF) else judged(i, [9.0] * 10) for i, row in enumerate(rows)]
    assert choose(rows, QUESTIONS, HALF)["math"]["wording"] == choose(turned, QUESTIONS, HALF)["math"]["wording"]
    nothing = [row for row in rows if not is_development(row, HALF)]
    figures = choose(nothing, QUESTIONS, HALF)["math"]
    assert (figures["wording"], figures["reason"]) == (1, "no pair in the development part: the first wording stays")
    assert math.isnan(figures["development"]["value"])


def test_equals_go_to_the_first_and_rows_of_a_prompt_stay_together():
    rows = [judged(number, [1.0] * 10) for number in range(30)]
    assert choose(rows, QUESTIONS, HALF)["math"]["wording"] == 1
    twin = Example("other", rows[0].messages, "math", (Response("a"),))
    assert all(is_development(rows[0], share) == is_development(twin, share) for share in (0.2, 0.5, 0.8))


class Scripted(FakeBackend):
    """Prefers the response `right` where the shown question is the fourth wording; remembers its calls."""

    def __init__(self, model: str, options: BackendOptions) -> None:
        super().__init__(model, options)
        self.calls: list[list[LabelRequest]] = []

    def label_logprobs(self, requests: Sequence[LabelRequest]) -> list[LabelResult]:
        self.calls.append(list(requests))
        return [self._said(request) for request in requests]

    def _said(self, request: LabelRequest) -> LabelResult:
        shown = request.render(request.text)[0].content
        knows = any(QUESTIONS.questions[name][3] in shown for name in QUESTIONS.questions)
        yes = 0.6 if knows and request.text.startswith("right") else 0.3
        return LabelResult((math.log(yes), math.log(0.3)), yes + 0.3, False)


def test_all_wordings_of_a_response_stand_together():
    """One call; the requests of one group differ in the question alone, so that their beginning is shared."""
    backend = Scripted("scripted", BackendOptions())
    example = Example("e", (Message("user", "Hi"),), "chat", (Response("right"), Response("other")), gold=(0,))
    (scored,) = AllWordings(backend, QUESTIONS)([example])
    assert len(backend.calls) == 1
    assert [r.group for r in backend.calls[0]] == ["e, response 1"] * 10 + ["e, response 2"] * 10
    assert [r.text for r in backend.calls[0]] == ["right"] * 10 + ["other"] * 10
    assert len({r.render(r.text) for r in backend.calls[0]}) == 20
    assert scored.scores[0].evidence["log_odds"] == pytest.approx([0, 0, 0, math.log(2), *[0] * 6])
    assert scored.scores[1].evidence["log_odds"] == pytest.approx([0] * 10)
    assert scored.scores[0].value == 0


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [
        {"id": f"r{i}", "prompt": f"What is {i}?", "category": "math", "chosen": f"right {i}", "rejected": f"no {i}"}
        for i in range(80)
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_the_command_writes_questions_that_are_asked(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(BACKENDS, "fake", Scripted)
    out = tmp_path / "search"
    done("search-questions", *MODEL, "--input", pairs, "--out", out)
    figures = json.loads((out / "results.json").read_text())["figures"]
    assert (figures["math"]["wording"], figures["math"]["held_out"]["value"]) == (4, 1.0)
    assert figures["math"]["gain"]["value"] == 0.5  # the default ties everywhere
    written = load_questions(str(out / "questions.toml"))
    assert written.question("math") == QUESTIONS.questions["math"][3]
    assert written.question("chat") == QUESTIONS.question("chat")
    assert (written.layout, written.yes, written.same) == (QUESTIONS.layout, QUESTIONS.yes, QUESTIONS.same)
    done("judge", *MODEL, "--input", pairs, "--out", tmp_path / "j.jsonl", "--questions", out / "questions.toml")
    assert summary(tmp_path / "j.jsonl")["judge_accuracy"]["value"] == 1.0


def test_an_interrupted_search_goes_on(pairs: Path, tmp_path: Path):
    """Half of the rows and a torn line are left: the rest is scored, and everything ends as in a straight run."""
    out, again = tmp_path / "a", tmp_path / "b"
    done("search-questions", *MODEL, "--input", pairs, "--out", out)
    done("search-questions", *MODEL, "--input", pairs, "--out", again)
    lines = (out / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (again / "rows.jsonl").write_bytes(b"".join(lines[:30]) + lines[30][:50])
    done("search-questions", *MODEL, "--input", pairs, "--out", again)
    assert (again / "rows.jsonl").read_bytes() == (out / "rows.jsonl").read_bytes()
    assert (again / "questions.toml").read_text() == (out / "questions.toml").read_text()
    assert len(next(read_rows(out / "rows.jsonl"))["scores"][0]["evidence"]["log_odds"]) == 10


def test_written_questions_survive_quotes_and_newlines(tmp_path: Path):
    odd = 'Is "this"\nright \\ or \x7f not, é?'
    questions = load_questions()
    changed = {name: (odd, *texts) for name, texts in questions.questions.items()}
    file = tmp_path / "q.toml"
    file.write_text(as_toml(QUESTIONS.__class__(**(vars(questions) | {"questions": changed})), {}), encoding="utf-8")
    assert load_questions(str(file)).question("safety") == odd


# Routing


def test_routing_by_hand():
    """Three of four right; one math request taken for chat."""
    pairs = [("chat", "chat"), ("math", "chat"), ("math", "math"), ("code", "code")]
    figures = routing_figures(pairs)
    assert (figures["accuracy"]["value"], figures["accuracy"]["n"]) == (0.75, 4)
    assert figures["confusion"] == ["chat as chat: 1", "code as code: 1", "math as chat: 1", "math as math: 1"]


def test_stated_categories_are_hidden_from_the_model():
    class Letters(FakeBackend):
        """Takes every request for a mathematical one."""

        def label_logprobs(self, requests: Sequence[LabelRequest]) -> list[LabelResult]:
            return [LabelResult((-2.0, -2.0, -1.0, -2.0), 0.5, False) for _ in requests]

    examples = [Example(str(i), (Message("user", "Hi"),), name) for i, name in enumerate(["math", "code", "math"])]
    figures = check_routing(Letters("letters", BackendOptions()), examples)
    assert figures["accuracy"]["value"] == pytest.approx(2 / 3)
    assert figures["confusion"] == ["code as math: 1", "math as math: 2"]


@pytest.mark.parametrize(
    ("options", "expected"), [((), 64), (("--check-routing", 5), 5), (("--check-routing", 0), None)]
)
def test_a_benchmark_reports_its_routing(options: tuple[Any, ...], expected: int | None, tmp_path: Path):
    done("bench", *MODEL, "--benchmark", "lab", "--out", tmp_path, "--limit", 80, *options)
    figures = json.loads((tmp_path / "results.json").read_text())["figures"]
    assert figures.get("routing", {"accuracy": {"n": None}})["accuracy"]["n"] == expected


def test_routing_is_not_asked_of_nobody(tmp_path: Path):
    done("bench", "--judge", "oracle", "--benchmark", "lab", "--out", tmp_path, "--limit", 5, "--quiet")
    assert "routing" not in json.loads((tmp_path / "results.json").read_text())["figures"]
