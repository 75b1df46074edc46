"""The judges on the backend without a model, the categories, and the judge for Python."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean, pstdev

import pytest
import tiny

from selfjudge.api import Judge
from selfjudge.backends import BackendOptions, LabelRequest, LabelResult, open_backend
from selfjudge.backends.fake import FakeBackend
from selfjudge.categories import classify
from selfjudge.errors import ConfigError, DataError
from selfjudge.judges import JUDGES, NEEDS_MODEL, JudgeSetup
from selfjudge.questions import load_questions
from selfjudge.records import CATEGORIES, Example, Message, Response

ASK = (Message("user", "What is 2 + 2?"),)


class Scripted(FakeBackend):
    """Gives label probabilities from a table of texts; remembers what was asked."""

    def __init__(self, answers: dict[str, tuple[float, ...]]) -> None:
        super().__init__("scripted", BackendOptions())
        self.answers = answers
        self.asked: list[LabelRequest] = []

    def label_logprobs(self, requests: Sequence[LabelRequest]) -> list[LabelResult]:
        self.asked += requests
        return [
            LabelResult(tuple(map(math.log, self.answers[r.text])), sum(self.answers[r.text]), r.text == "long")
            for r in requests
        ]


def example(*texts: str, category: str | None = "math", reference: str | None = None) -> Example:
    return Example("e1", ASK, category, tuple(map(Response, texts)), reference=reference)


def test_yes_no_arithmetic():
    """P = .6 and .2: log 3, mass .8; .1 and .4: -log 4, mass .5."""
    backend = Scripted({"4": (0.6, 0.2), "5": (0.1, 0.4), "long": (0.5, 0.5)})
    scored = JUDGES["yes-no"].make(JudgeSetup((backend,)))([example("5", "4", "long")])[0]
    assert [score.value for score in scored.scores] == pytest.approx([-math.log(4), math.log(3), 0])
    assert [score.label_mass for score in scored.scores] == pytest.approx([0.5, 0.8, 1.0])
    assert [score.truncated for score in scored.scores] == [False, False, True]
    assert replace(scored, scores=()) == example("5", "4", "long")


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.25, 60, 140), (1.0, 400, 400)])
def test_label_mass_of_a_share(share: float, low: int, high: int):
    """Of 400 responses, about a quarter; which ones depends on the row and the text alone."""
    texts = [str(number) for number in range(400)]
    backend = Scripted(dict.fromkeys(texts, (0.6, 0.2)))
    JUDGES["yes-no"].make(JudgeSetup((backend,), mass_share=share))([example(*texts)])
    chosen = {request.text for request in backend.asked if request.with_mass}
    assert low <= len(chosen) <= high
    JUDGES["yes-no"].make(JudgeSetup((again := Scripted(backend.answers),), mass_share=share))([example(*texts[200:])])
    assert {request.text for request in again.asked if request.with_mass} == chosen & set(texts[200:])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_yes_no_scores_again_from_what_is_valid(share: float):
    """Without the label mass only the difference of the log-probabilities means anything, and only it is kept."""
    with open_backend("fake", "any", BackendOptions()) as backend:
        scored = JUDGES["yes-no"].make(JudgeSetup((NoMass("any", BackendOptions()) if not share else backend,)))(
            [example("4", "5")]
        )[0]
    assert set(scored.scores[0].evidence) == ({"yes", "no"} if share else {"log_odds"})
    rescore = JUDGES["yes-no"].rescore
    assert rescore is not None
    unknown = replace(scored, scores=tuple(replace(score, value=9.0) for score in scored.scores))
    assert rescore(unknown).to_json() == scored.to_json()


class NoMass(FakeBackend):
    """Gives unnormalised values, as a backend may where no mass is asked for."""

    def label_logprobs(self, requests: Sequence[LabelRequest]) -> list[LabelResult]:
        results = super().label_logprobs(requests)
        return [LabelResult(tuple(value + 7 for value in r.logprobs), math.nan, False) for r in results]


def test_yes_no_asks_once_for_repeated_responses():
    backend = Scripted({"4": (0.6, 0.2), "5": (0.1, 0.4)})
    scored = JUDGES["yes-no"].make(JudgeSetup((backend,)))([example("4", "5", "4", "4")])[0]
    assert [request.text for request in backend.asked] == ["4", "5"]
    assert scored.scores[0] == scored.scores[2] == scored.scores[3] != scored.scores[1]


def test_yes_no_asks_the_question_of_the_category():
    questions = load_questions()
    for in_place, turns in ((False, 1), (True, 3)):
        backend = Scripted({"4": (0.5, 0.5)})
        examples = [replace(example("4", category=name), id=name) for name in CATEGORIES]
        JUDGES["yes-no"].make(JudgeSetup((backend,), questions, in_place))(examples)
        for name, request in zip(CATEGORIES, backend.asked, strict=True):
            messages = request.render(request.text)
            assert len(messages) == turns
            assert questions.question(name) in messages[-1].content
            assert request.labels == (questions.yes, questions.no)


def test_braces_in_a_response_are_text():
    shown = load_questions().separate(ASK, "{question} {request}", "math")[0].content
    assert "Response:\n{question} {request}\n" in shown


def test_yes_no_finds_missing_categories_first():
    """The letters' probabilities choose `code`; an example with its category is not asked about."""
    backend = Scripted({ASK[0].content: (0.1, 0.5, 0.2, 0.1), "4": (0.5, 0.5)})
    judge = JUDGES["yes-no"].make(JudgeSetup((backend,)))
    scored = judge([example("4", category=None), replace(example("4"), id="e2")])
    assert [result.category for result in scored] == ["code", "math"]
    assert [len(request.labels) for request in backend.asked] == [4, 2, 2]
    assert load_questions().question("code") in backend.asked[1].render("4")[-1].content


@pytest.mark.parametrize("index", range(4))
def test_classify(index: int):
    probabilities = [0.1] * 4
    probabilities[index] = 0.3
    backend = Scripted({ASK[0].content: tuple(probabilities)})
    assert classify(backend, [example(category=None)])[0].category == CATEGORIES[index]


def test_classify_asks_nothing_when_all_are_known():
    backend = Scripted({})
    assert classify(backend, [example("4")]) == [example("4")]
    assert backend.asked == []


def test_classify_with_a_model(model_folder: Callable[..., str]):
    with open_backend("hf", model_folder("llama"), BackendOptions(device="cpu")) as backend:
        found = classify(backend, [example(category=None), replace(example(category=None), id="e2")])
    assert found[0].category in CATEGORIES
    assert found[0].category == found[1].category


def test_oracle():
    scored = JUDGES["oracle"].make(JudgeSetup())([example("4", " 4\n", "5", reference="4")])[0]
    assert [score.value for score in scored.scores] == [5, 5, -5]
    with pytest.raises(DataError, match="e1: the oracle judge needs a `reference`"):
        JUDGES["oracle"].make(JudgeSetup())([example("4")])


def test_random_is_a_function_of_seed_example_and_text():
    first = JUDGES["random"].make(JudgeSetup(seed=1))([example("4", "5", "4")])[0].scores
    again = JUDGES["random"].make(JudgeSetup(seed=1))([example("5", "4")])[0].scores
    assert first[0].value == first[2].value == again[1].value
    other_seed = JUDGES["random"].make(JudgeSetup(seed=2))([example("4")])[0].scores
    other_example = JUDGES["random"].make(JudgeSetup(seed=1))([replace(example("4"), id="e2")])[0].scores
    assert len({first[0].value, first[1].value, other_seed[0].value, other_example[0].value}) == 4


def test_random_knows_nothing():
    """4,000 scores of standard deviation 5: the mean is within 3 standard errors of 0.08."""
    judge = JUDGES["random"].make(JudgeSetup(seed=0))
    scores = [s.value for s in judge([example(*map(str, range(4000)))])[0].scores]
    assert abs(fmean(scores)) < 0.24
    assert pstdev(scores) == pytest.approx(5, abs=0.2)


def test_controls_ask_no_model():
    assert set(JUDGES) - NEEDS_MODEL == {"oracle", "random"}


# The judge for Python


def test_judge_scores_and_ranks(model_folder: Callable[..., str]):
    texts = ["one", "two of five", "course", "one"]
    with Judge(model_folder("llama"), device="cpu") as judge:
        scores = judge.score("Is it?", texts, "math")
        assert scores[0] == scores[3]
        assert len({*scores}) == 3
        ranked = judge.rank("Is it?", texts, "math")
        talk = judge.score([("system", "Be brief."), ("user", "Is it?")], texts, "math")
    assert [entry.score for entry in ranked] == sorted(scores, reverse=True)
    assert [(texts[entry.index], scores[entry.index]) for entry in ranked] == [(r.text, r.score) for r in ranked]
    places = [entry.index for entry in ranked if entry.text == "one"]
    assert places == [0, 3]  # equals keep their order
    assert talk != scores
    with open_backend("hf", model_folder("llama"), BackendOptions(device="cpu")) as backend:
        direct = JUDGES["yes-no"].make(JudgeSetup((backend,)))(
            [Example("x", (Message("user", "Is it?"),), "math", tuple(map(Response, texts)))]
        )
    assert [score.value for score in direct[0].scores] == pytest.approx(scores, abs=1e-5)


def test_judge_refuses_unknown_options():
    with pytest.raises(ConfigError, match="--in-plase"):
        Judge("lab", in_plase=True)
    with pytest.raises(ConfigError, match="no such folder"):
        Judge("/no/such/model")


def test_the_tiny_tokenizer_has_all_labels():
    assert all(len(tiny.tokenizer().encode(word)) == 1 for word in ("Yes", " Yes", "No", " No", "A", " D"))
