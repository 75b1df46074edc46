"""The rating judges: what is read as a grade, the mean over its distribution, and the same on a model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from commands import done, summary
from test_judges import ASK, Scripted, example
from test_measures import pair_differences

from selfjudge.backends import BackendOptions, LabelRequest, SampleRequest, SampleResult, Sampling, open_backend
from selfjudge.backends.fake import FakeBackend
from selfjudge.backends.prompts import fair_share
from selfjudge.cli import main
from selfjudge.judges import JUDGES, JudgeSetup
from selfjudge.judges.rating import mean_grade, parse_grade
from selfjudge.records import CATEGORIES, Example, Message, Response
from selfjudge.store import read_rows

WIDE = {"max_position_embeddings": 2048}
"""A context that holds the rubric in the tiny models' tokens."""


class Writer(FakeBackend):
    """Writes what a function makes of the shown prompt; remembers the prompts."""

    def __init__(self, write: Callable[[str], str], finished: bool = True) -> None:
        super().__init__("writer", BackendOptions())
        self.write, self.finished = write, finished
        self.asked: list[SampleRequest] = []
        self.sampling: Sampling | None = None

    def generate(
        self, requests: Iterable[SampleRequest], sampling: Sampling, done: Container[str] = ()
    ) -> Iterator[list[SampleResult]]:
        self.sampling = sampling
        for request in reversed(list(requests)):  # a backend may finish them in any order
            self.asked.append(request)
            text = self.write(request.messages[-1].content)
            if request.key not in done:
                yield [SampleResult(request.key, (), (Response(text, finished=self.finished),))]


def rated(write: Callable[[str], str], asked: Example, finished: bool = True) -> Example:
    return JUDGES["rating"].make(JudgeSetup((Writer(write, finished),)))([asked])[0]


@pytest.mark.parametrize(
    ("completion", "grade"),
    [
        *[(text, 4) for text in ("4", " 4\n", "**4**", "4.", "4/5", "4 / 5", "4 out of 5", "It earns 4 out of five.")],
        *[
            (text, 4)
            for text in ("Score: 4", "**Score:** 4", "**Score**: 4", "score is 4", "Score: **4**", "SCORE = 4")
        ],
        *[(text, 4) for text in ("Score: 4/5", "Score (1-5): 4", "Score out of 5: 4", "Grade: [4]", "a score of 4.")],
        *[(text, 4) for text in ("Final score: 4.0", "Total: 4 points", "Score - 4", "Score: 4\n- 2 faults", "[[4]]")],
        *[
            (text, 4)
            for text in ("Rating: [[4]]", "Score: $\\boxed{4}$", "Right.\n\n4\n", "Score: `4`", "Good.\r\n4\r\n")
        ],
        ("Final score: 3.5", 3.5),
        ("Score: 3,5", 3.5),
        # several: the most explicit kind, and of it the last
        ("Score: 2 at first. Then again:\nScore: 4", 4),
        ("Score: 4, that is 2/5 of nothing.\n1", 4),
        ("2/5 for style, 3/5 in all", 3),
        ("<think>Score: 1?</think>Score: 5", 5),
        # no grade on this scale
        *[
            (text, None)
            for text in ("7/5", "Score: 7/5", "Score: 10", "10", "0", "Score: 0", "Score: -1", "Score: 5.5")
        ],
        *[(text, None) for text in ("Score: 4/10", "Score: 80%", "8/10", "Score: 4th", "Score: 1-5", "Score: 1 to 5")],
        ("Score: 9\nIn all 4/5", None),
        # no grade
        *[(text, None) for text in ("", "A good answer.", "1. It deals with it.\n2. It is clear.", "It has 3 parts.")],
        *[
            (text, None)
            for text in ("Give a score from 1 to 5.", "Score: N", "on 4/5/2024", "Score:", "Scores vary: 3")
        ],
    ],
)
def test_grades(completion: str, grade: float | None) -> None:
    assert parse_grade(completion) == grade


def test_the_prompt_is_never_read() -> None:
    """Request and response both name a grade; the model names another one, or none."""
    asked = Example("e1", (Message("user", "Score: 5"),), "chat", (Response("Score: 5\n[[5]]"), Response("5/5")))
    one, other = rated(lambda shown: "Score: 2" if "[[5]]" in shown else "I cannot say.", asked).scores
    assert one.value == 2
    assert math.isnan(other.value)


def test_the_judge_writes_greedily_and_is_asked_once_for_repeated_responses() -> None:
    backend = Writer(lambda shown: "4" if "seven" in shown else "Score: 2")
    judge = JUDGES["rating"].make(JudgeSetup((backend,), tokens=31))
    scored = judge([example("six", "seven", "six"), replace(example("seven"), id="e2")])
    assert [[score.value for score in one.scores] for one in scored] == [[2, 4, 2], [4]]
    assert (backend.sampling.temperature, backend.sampling.max_new_tokens) == (0, 31) if backend.sampling else False
    assert len({request.key for request in backend.asked}) == len(backend.asked) == 3
    assert "Score: N" in backend.asked[0].messages[0].content
    assert judge([]) == []


def test_a_missing_grade_is_no_grade() -> None:
    """NaN with the reason and the text; a pair with one on either side is neither right nor wrong."""
    asked = replace(example("six", "seven"), gold=(0,))
    for silent in ("six", "seven"):
        scored = rated(lambda shown, silent=silent: "Hm." if silent in shown else "Score: 3", asked)
        ((_, difference),) = pair_differences(scored)
        assert math.isnan(difference)
        score = scored.scores[("six", "seven").index(silent)]
        assert (score.reason, score.evidence) == ("no grade from 1 to 5 in the completion", {"text": "Hm."})


def test_a_completion_that_was_cut_off_says_so() -> None:
    cut = rated(lambda _: "The response is", example("six"), finished=False).scores[0]
    assert cut.reason == "cut off at the token limit before a grade; raise --judge-tokens"
    assert rated(lambda _: "Score: 3. It is", example("six"), finished=False).scores[0].value == 3


def test_equal_grades_are_a_tie() -> None:
    """Neither the alphabet nor the place decides."""
    for texts in (("a", "b"), ("b", "a")):
        scored = rated(lambda _: "Score: 3", replace(example(*texts), gold=(0,)))
        assert pair_differences(scored) == [("", 0.0)]


# The mean grade


def test_mean_grade_by_hand() -> None:
    """(1 * .1 + 2 * .1 + 3 * .2 + 4 * .3 + 5 * .1) / .8 = 2.6 / .8 = 3.25; far below, nothing underflows."""
    backend = Scripted({"4": (0.1, 0.1, 0.2, 0.3, 0.1)})
    score = JUDGES["rating-expected"].make(JudgeSetup((backend,)))([example("4", "4")])[0].scores[1]
    assert score.value == pytest.approx(3.25)
    assert score.label_mass == pytest.approx(0.8)
    assert score.evidence["grades"] == pytest.approx([math.log(p) for p in (0.1, 0.1, 0.2, 0.3, 0.1)])
    assert len(backend.asked) == 1
    assert mean_grade([-2000, -3000, -3000, -3000, -2000]) == pytest.approx(3)


# On a model


def on_model(folder: str, name: str, examples: Sequence[Example], **options: int) -> list[Example]:
    with open_backend("hf", folder, BackendOptions(device="cpu", **options)) as backend:
        return JUDGES[name].make(JudgeSetup((backend,), tokens=6))(examples)


def several() -> list[Example]:
    """Three prompts of 2 to 4 responses, one of them repeated."""
    texts = (("one", "two of three"), ("Yes", "No", "42"), ("x y z", "course", "x y z", "sum"))
    return [replace(example(*own), id=f"e{number}") for number, own in enumerate(texts)]


@pytest.mark.parametrize("name", ["rating", "rating-expected"])
def test_many_at_once_are_as_one_by_one(model_folder: Callable[..., str], name: str) -> None:
    folder = model_folder("llama", **WIDE)
    together = on_model(folder, name, several())
    alone = [one for example in several() for one in on_model(folder, name, [example])]
    for one, other in zip(together, alone, strict=True):
        assert [s.evidence.get("text") for s in one.scores] == [s.evidence.get("text") for s in other.scores]
        values, expected = [s.value for s in one.scores], [s.value for s in other.scores]
        assert values == pytest.approx(expected, abs=1e-4, nan_ok=True)
        rescore = JUDGES[name].rescore
        assert rescore is not None
        assert rescore(one).to_json() == one.to_json()
    assert together[2].scores[0].evidence == together[2].scores[2].evidence != together[2].scores[1].evidence


def test_a_long_response_is_cut_to_leave_room_for_the_answer(model_folder: Callable[..., str]) -> None:
    folder = model_folder("llama", **WIDE)
    long = example("w " * 3000, "short")
    for name in ("rating", "rating-expected"):
        scored = on_model(folder, name, [long])[0]
        assert [score.truncated for score in scored.scores] == [True, False]
    too_long = replace(long, messages=(Message("user", "w " * 3000),))
    for name, room in (
        ("rating", "2042 tokens that the model takes; lower --judge-tokens"),
        ("rating-expected", "2048 "),
    ):
        judged, other = on_model(folder, name, [too_long, replace(example("4", "5"), id="e2")])
        assert [room in str(score.reason) for score in judged.scores] == [True, True]
        assert not any("exceed" in str(score.reason) for score in other.scores)
        rescore = JUDGES[name].rescore
        assert rescore is not None
        assert rescore(judged).to_json() == judged.to_json()


def test_fair_share_by_hand() -> None:
    """Of 110: the short one keeps its 10, 100 are left for two. Of 9: 3 each. Enough: the longest is whole."""
    assert fair_share([10, 100, 100], 110) == 50
    assert fair_share([100, 10, 100], 9) == 3
    assert fair_share([5, 7], 20) == 7


def test_two_texts_are_cut_to_the_same_length(model_folder: Callable[..., str]) -> None:
    """Whichever is the longer one; a short one stays whole, and the prompt fits and is nearly full."""
    with open_backend("hf", model_folder("llama"), BackendOptions(device="cpu")) as backend:
        labels = (("A", " A"), ("B", " B"))

        def kept(first: str, second: str) -> list[int]:
            shown: list[list[int]] = []

            def render(*texts: str) -> tuple[Message, ...]:
                shown.append([text.count("w") for text in texts])
                return (Message("user", "|".join(texts)),)

            asked = backend.prompts.ask(LabelRequest("x", render, first, labels, more=(second,)))  # pyright: ignore
            assert asked.truncated
            assert 512 - 40 < len(asked.ids) <= 512
            return shown[-1]

        for lengths in ((900, 600), (600, 900), (3000, 3000)):
            first, second = kept(*("w" * n for n in lengths))
            assert abs(first - second) <= 2
        assert kept("w" * 900, "w" * 9)[1] == 9


# The commands


@pytest.mark.parametrize("name", ["yes-no", "rating", "rating-expected", "pairwise", "pairwise-verdict"])
def test_rescoring_gives_the_stored_scores(tmp_path: Path, name: str) -> None:
    """From the rows alone, byte for byte, and the same summary; the judge is read from the meta file."""
    rows = [replace(several()[i % 3], id=f"e{i}", category=CATEGORIES[i % 4], gold=(0,)).to_json() for i in range(30)]
    source, scored, again = (tmp_path / f"{name}.jsonl" for name in ("rows", "scored", "again"))
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done("judge", "--backend", "fake", "--model", "f", "--judge", name, "--input", source, "--out", scored)
    done("rescore", "--input", scored, "--out", again)
    assert scored.read_bytes() == again.read_bytes()
    assert summary(scored) == summary(again)
    values = {score["value"] for row in read_rows(scored) for score in row["scores"]}
    assert len(values) > 3
    if name != "pairwise-verdict":  # whose one unreadable verdict is seldom the only one on a response
        assert (None in values) == (name == "rating")


def test_rescoring_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, scored, out = (tmp_path / f"{name}.jsonl" for name in ("rows", "scored", "out"))
    source.write_text(json.dumps(several()[0].to_json()) + "\n")
    done("judge", "--backend", "fake", "--model", "f", "--judge", "rating", "--input", source, "--out", scored)
    capsys.readouterr()
    for arguments, problem in (
        (["--input", str(scored), "--judge", "pairwise"], "e0, response 0: the evidence of its score holds text, but"),
        (["--input", str(source)], "--judge recorded: nothing beside"),
        (["--input", str(source), "--judge", "rating"], "no scores: `selfjudge judge` adds them"),
    ):
        assert main(["rescore", "--quiet", *arguments, "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert problem in error
        assert error.count("\n") == 1


def test_the_messages_end_with_the_question() -> None:
    """The rubric comes behind the response, so that nothing in a response stands after it."""
    for name in ("rating", "rating-expected"):
        backend = Scripted({"4": (0.2,) * 5}) if name == "rating-expected" else Writer(lambda _: "3")
        JUDGES[name].make(JudgeSetup((backend,)))([example("4")])
        request = backend.asked[0]
        shown = (request.render("4") if isinstance(request, LabelRequest) else request.messages)[0].content
        assert shown.index(ASK[0].content) < shown.index("Response:\n4") < shown.index("1 point")
