"""The wording of the judge: what is shown, and what is wrong with a file of one's own."""

from pathlib import Path

import pytest

from selfjudge.errors import ConfigError
from selfjudge.questions import BUILT_IN, flatten, load_questions
from selfjudge.records import CATEGORIES, Message

ASK = (Message("user", "What is 2 + 2?"),)


def test_the_question_stands_last():
    """Nothing trails behind it, in either layout."""
    questions = load_questions()
    for category in CATEGORIES:
        ending = f"{questions.question(category)} {questions.answer_format}"
        assert questions.separate(ASK, "4", category)[-1].content.endswith(ending)
        assert questions.in_place(ASK, "4", category)[-1] == Message("user", ending)


def test_separate_quotes_request_and_response():
    text = load_questions().separate(ASK, "It is 4.", "math")[0].content
    assert text.startswith("Request:\nWhat is 2 + 2?\n\nResponse:\nIt is 4.\n\n")


def test_in_place_continues_the_conversation():
    messages = load_questions().in_place(ASK, "It is 4.", "math")
    assert messages[:2] == (*ASK, Message("assistant", "It is 4."))


def test_conversations_are_flattened_with_their_roles():
    assert flatten(ASK) == "What is 2 + 2?"
    assert flatten((Message("system", "Be brief."), *ASK)) == "System: Be brief.\n\nUser: What is 2 + 2?"


def test_the_safety_question_does_not_announce_the_answer():
    """It names both ways to be right, so that a refusal is not right by the wording alone."""
    question = load_questions().question("safety")
    assert "helping" in question
    assert "declining" in question


def test_a_file_of_ones_own(tmp_path: Path):
    file = tmp_path / "mine.toml"
    file.write_text(BUILT_IN.read_text().replace("without a bug", "and compile"))
    assert "and compile" in load_questions(str(file)).question("code")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("{response}", "response"), "`layout` must contain {request}, {response}"),
        (("math =", "maths ="), r"\[questions\] has no `math`"),
        (("answer_format =", "format ="), "`answer_format` is missing"),
        (("[labels]", "[words]"), r"\[labels\] `yes` must be a list of words"),
        (("[labels]", "[labels"), "mine.toml: "),
    ],
    ids=str,
)
def test_problems_of_a_file(tmp_path: Path, change: tuple[str, str], problem: str):
    file = tmp_path / "mine.toml"
    file.write_text(BUILT_IN.read_text().replace(*change))
    with pytest.raises(ConfigError, match=problem):
        load_questions(str(file))


def test_no_such_file():
    with pytest.raises(ConfigError, match=r"questions file /no/such\.toml"):
        load_questions("/no/such.toml")
