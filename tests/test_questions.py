"""The wording of the judge: what is shown, and what is wrong with a file of one's own."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import done

from selfjudge.checks import build_checked
from selfjudge.cli import COMMANDS
from selfjudge.errors import ConfigError, DataError
from selfjudge.questions import BUILT_IN, Ablation, flatten, load_questions
from selfjudge.records import CATEGORIES, Example, Message
from selfjudge.store import read_rows

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
    """Every wording names both ways to be right, and none calls the request or the response by a verdict."""
    for question in load_questions().questions["safety"]:
        assert re.search(r"\bhelp(s|ing)?\b", question), question
        assert re.search(r"\bdeclin(e|es|ing)\b", question), question
        assert not re.search(r"refus|unsafe|inappropriate|dangerous|offensive|appropriate", question), question


def test_wordings_are_many_and_all_different():
    """Nine paraphrases of every category's first question, and of the one for all; the first is what models learnt."""
    questions = load_questions()
    assert questions.wordings == 10
    texts = [text for wordings in (*questions.questions.values(), questions.same) for text in wordings]
    assert len(set(texts)) == len(texts) == 50
    assert all(text.endswith("?") and "yes" not in text.lower() for text in texts)
    assert load_questions(wording=1).question("math") == (
        "Is this response correct, in its reasoning and in its final answer?"
    )
    assert load_questions(wording=10).question("code") == questions.questions["code"][9]


@pytest.mark.parametrize(("wording", "ablation"), [(11, "none"), (0, "none"), (11, "same")])
def test_a_wording_that_is_not_there(wording: int, ablation: Ablation):
    with pytest.raises(ConfigError, match=rf"--wording {wording}: the built-in file has 10 .* use 1 to 10"):
        load_questions(None, wording, ablation)


def test_ablations():
    """Same: one text for all; shuffled: the same texts, each at another category."""
    plain, same, shuffled = (load_questions(None, 3, ablation) for ablation in ("none", "same", "shuffled"))
    assert {same.question(name) for name in CATEGORIES} == {plain.same[2]}
    assert sorted(map(shuffled.question, CATEGORIES)) == sorted(map(plain.question, CATEGORIES))
    assert all(shuffled.question(name) != plain.question(name) for name in CATEGORIES)


def test_same_needs_a_question(tmp_path: Path):
    file = tmp_path / "mine.toml"
    file.write_text(BUILT_IN.read_text().replace("same =", "[other]\nsame ="))
    with pytest.raises(ConfigError, match="the questions file has no `same`"):
        load_questions(str(file), ablation="same")


# The reference implementation's files

ROW = Example("r1", ASK, "math", tags={"subset": "math-prm", "domain": "safety-refuse"})


def written(folder: Path, value: Any) -> str:
    file = folder / "questions.json"
    file.write_text(json.dumps(value))
    return str(file)


def test_questions_by_subset(tmp_path: Path):
    """A known subset gets its question, any other the `default`, whose single wording stands for both."""
    file = written(tmp_path, {"default": "Good?", "math-prm": ["Right?", "Correct?"]})
    questions = load_questions(file, 2)
    assert (questions.by_subset, questions.wordings) == (True, 2)
    assert questions.question(questions.topic(ROW)) == "Correct?"
    assert questions.question(questions.topic(replace(ROW, tags={"subset": "hep-go"}))) == "Good?"
    assert questions.question(questions.topic(replace(ROW, tags={}))) == "Good?"


def test_an_unknown_subset_without_a_default(tmp_path: Path):
    questions = load_questions(written(tmp_path, {"hep-go": "Right?"}))
    with pytest.raises(DataError, match=r"r1: no question for its subset \(math-prm or safety-refuse\)"):
        questions.topic(ROW)


def test_rm_bench_questions_go_by_domain(tmp_path: Path):
    file = written(tmp_path, {"sets": {"RM-Bench-chat": "Fine?", "RM-Bench-safety-refuse": "Refused?"}})
    questions = load_questions(file + "#sets")
    assert questions.question(questions.topic(ROW)) == "Refused?"
    assert questions.as_reference(ASK, "4", "chat")[0].content == (
        "Given the following:\n    User : What is 2 + 2?\n    Response : 4\n    Fine?"
    )


def test_nothing_trails_behind_a_question_that_states_its_answers(tmp_path: Path):
    questions = load_questions(written(tmp_path, {"default": "Good? Answer Yes/No"}))
    assert questions.separate(ASK, "4", "default")[0].content.endswith("4\n\nGood? Answer Yes/No")
    assert questions.next_turn("default") == "Good? Answer Yes/No"
    assert questions.as_reference(ASK, "4", "default")[0].content == (
        "Good? Answer Yes/No\n    User : What is 2 + 2?\n    Response : 4\n    "
    )


@pytest.mark.parametrize(
    ("value", "name", "problem"),
    [
        ({"a": {"x": "?"}, "b": {"x": "?"}}, "", r"its sets are a, b; give .*questions\.json#a or another"),
        ({"a": {"x": "?"}}, "#c", "#c: its sets are a; give "),
        ({"x": "?"}, "#c", "#c: the file is one set; give "),
        ({"x": 3, "y": []}, "", "x, y should be a text or a list of texts"),
        ([], "", "should be an object of questions"),
    ],
)
def test_problems_of_a_json_file(tmp_path: Path, value: Any, name: str, problem: str):
    with pytest.raises(ConfigError, match=problem):
        load_questions(written(tmp_path, value) + name)


def test_the_references_own_files(shared_data: Path):
    """All its sets are read; the self-improvement questions are by category, `General` being about code."""
    folder = shared_data / "ipo_prompts"
    sets = ("reward_bench", "reward_bench_shuffled", "reward_bench_same", "rm_bench")
    assert all(load_questions(f"{folder}/final_questions.json#{name}").by_subset for name in sets)
    four = load_questions(f"{folder}/final_questions.json#self_improvement")
    assert (four.by_subset, set(four.questions)) == (False, set(CATEGORIES))
    assert "code" in four.question("code")
    assert load_questions(f"{folder}/candidate_prompts.json").wordings == 10
    with pytest.raises(ConfigError, match="the questions are by subset"):
        load_questions(f"{folder}/final_questions.json#reward_bench", ablation="shuffled")


def test_options_reach_the_judge(tmp_path: Path):
    """Wording, ablation and the reference's layout change the scores; each as the questions say."""

    def scores(*options: str) -> list[Any]:
        out = tmp_path / "-".join(["scores", *options]).replace("/", "_")
        fake = ["--backend", "fake", "--model", "fake", "--quiet", "--limit", 3]
        done("judge", *fake, "--input", "lab", "--out", f"{out}.jsonl", *options)
        return [score["value"] for row in read_rows(f"{out}.jsonl") for score in row["scores"]]

    ways = [(), ("--wording", "2"), ("--ablation", "same"), ("--ablation", "shuffled"), ("--layout", "reference")]
    found = [scores(*options) for options in ways]
    assert all(a != b for i, a in enumerate(found) for b in found[:i])


@pytest.mark.parametrize(
    ("command", "options", "problem"),
    [
        ("judge", {"wording": 11}, "--wording 11: the built-in file has 10"),
        ("judge", {"judge": "random", "model": None, "wording": 2}, "--wording has no effect with --judge random"),
        ("judge", {"judge": "oracle", "model": None, "ablation": "same"}, "--ablation has no effect with --judge"),
        ("judge", {"judge": "oracle", "model": None, "layout": "reference"}, "--layout has no effect with --judge"),
        ("judge", {"layout": "reference", "in_place": True}, "--layout reference quotes the response, --in-place"),
        ("sample", {"wording": 2}, "--wording has no effect with --in-place False"),
        ("evaluate", {"benchmark": "lab", "ablation": "worse"}, "should be 'none', 'same' or 'shuffled'"),
        ("search-questions", {"candidates": "none.toml"}, "--candidates: questions file none.toml: No such file"),
        ("search-questions", {"develop": 0.5}, "the nearest is --development"),
        ("search-questions", {"zzz": 1}, "see selfjudge search-questions --help"),
    ],
)
def test_refused_options(command: str, options: dict[str, Any], problem: str):
    values = {"model": "fake", "backend": "fake", "input": "lab", "out": "-"} | options
    kind = COMMANDS[command][0]
    given = {name: value for name, value in values.items() if value is not None}
    known = {k: v for k, v in given.items() if k in kind.model_fields or k in options}
    with pytest.raises(ConfigError, match=re.escape(problem)):
        build_checked(kind, known)


# A file of one's own


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
