"""The committee: votes and strengths by hand, who is asked and how often, and the commands end to end."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import done, summary
from models import make_model, make_prompts

from selfjudge.backends import BackendOptions, LabelRequest, LabelResult
from selfjudge.backends.fake import FakeBackend
from selfjudge.backends.hf import HFBackend
from selfjudge.cli import main
from selfjudge.errors import ConfigError
from selfjudge.judges import JUDGES, JudgeSetup
from selfjudge.judges.committee import annotators_of, committee_scores, rescore
from selfjudge.judges.yes_no import YesNo
from selfjudge.questions import BUILT_IN, Questions, load_questions
from selfjudge.ranking import hard_votes, votes_from_scores, zermelo
from selfjudge.records import CATEGORIES, Example, Message, Response
from selfjudge.store import read_rows

ASK = (Message("user", "What is 2 + 2?"),)
WORDINGS = ("Is it right?", "Would you agree with this response?", "Does this answer the request as it should?")


@pytest.fixture
def questions_file(tmp_path: Path) -> Path:
    """Three wordings of every question."""
    head = BUILT_IN.read_text(encoding="utf-8").partition("[questions]")[0]
    lines = "".join(f"{name} = {json.dumps(WORDINGS)}\n" for name in CATEGORIES)
    path = tmp_path / "three.toml"
    path.write_text(f"{head}[questions]\n{lines}")
    return path


@pytest.fixture
def questions(questions_file: Path) -> Questions:
    return load_questions(str(questions_file))


class Scripted(FakeBackend):
    """Gives log-odds from a table: text -> one per wording; remembers what was asked, call by call."""

    def __init__(self, log_odds: dict[str, tuple[float, ...]], mass: float = 0.5) -> None:
        super().__init__("scripted", BackendOptions())
        self.log_odds = log_odds
        self.mass = mass
        self.calls: list[list[LabelRequest]] = []

    def label_logprobs(self, requests: Sequence[LabelRequest]) -> list[LabelResult]:
        self.calls.append(list(requests))
        return [self._scripted(request) for request in requests]

    def _scripted(self, request: LabelRequest) -> LabelResult:
        shown = request.render(request.text)[-1].content
        wording = next(number for number, words in enumerate(WORDINGS) if words in shown)
        return LabelResult((self.log_odds[request.text][wording], 0.0), self.mass, request.text == "long")


def example(*texts: str, id: str = "e1") -> Example:
    return Example(id, ASK, "math", tuple(map(Response, texts)))


def committee(questions: Questions, *backends: Scripted, **options: Any) -> Callable[..., list[Example]]:
    names = tuple(f"model-{number}" for number in range(len(backends)))
    return JUDGES["committee"].make(JudgeSetup(backends, questions, models=names, **options))


def values(scored: Example) -> list[float]:
    return [score.value for score in scored.scores]


# Arithmetic


def test_soft_votes_of_two_annotators_by_hand():
    """Differences 1 and -2: sigmoid(1) + sigmoid(-2) = .731059 + .119203 = .850262 votes, and 2 - .850262 against.

    With prior 1 two strengths w and 1/w satisfy w = (H01 w_1/(w+w_1) + 1/(1+w)) / (H10/(w+w_1) + 1/(1+w)).
    """
    scores = [[1.0, 0.0], [0.0, 2.0]]
    votes = votes_from_scores(scores, [1, 1])
    assert votes[0, 1] == pytest.approx(0.850262, abs=1e-6)
    assert votes[1, 0] == pytest.approx(1.149738, abs=1e-6)
    strengths = committee_scores(scores)
    assert strengths[0] == pytest.approx(-strengths[1])
    w = math.exp(strengths[0])
    other = 1 / w
    wins, losses = 0.850262 * other / (w + other) + 1 / (1 + w), 1.149738 / (w + other) + 1 / (1 + w)
    assert w == pytest.approx(wins / losses, abs=1e-5)
    assert strengths[0] < -0.05


def test_temperatures_divide():
    assert committee_scores([[3.0, 0.0]], temperatures=[3.0]) == pytest.approx(committee_scores([[1.0, 0.0]]))
    plain = committee_scores([[3.0, 0.0]], prior=0.0)
    assert plain[0] - plain[1] == pytest.approx(3)  # one soft judge without a prior: its own difference


@pytest.mark.parametrize(("annotators", "target"), [(1, 1.06), (5, 2.20), (9, 2.67), (21, 3.38)])
def test_unanimous_hard_votes(annotators: int, target: float):
    """Two responses, every annotator for the first, prior 1."""
    strengths = committee_scores([[4.0, -4.0]] * annotators, "hard")
    assert strengths[0] - strengths[1] == pytest.approx(target, abs=0.005)


def test_hard_votes_count_a_tie_half():
    """First annotator 0 > 1 = 2, second 2 > 0 > 1: 0 gets 2 votes over 1 and 1 over 2, 1 gets half a vote over 2."""
    votes = hard_votes([[2.0, 1.0, 1.0], [0.0, -1.0, 5.0]])
    assert votes.tolist() == [[0, 2, 1], [0, 0, 0.5], [1, 1.5, 0]]
    assert (votes + votes.T)[~np.eye(3, dtype=bool)].tolist() == [2] * 6


def test_a_response_without_a_score_is_left_out():
    nan = math.nan
    found = committee_scores([[2.0, nan, 0.0], [1.0, 3.0, 0.0]])
    assert math.isnan(found[1])
    assert found[[0, 2]] == pytest.approx(committee_scores([[2.0, 0.0], [1.0, 0.0]]))
    assert committee_scores([[1.0, nan], [math.inf, 0.0]]).tolist() == pytest.approx([nan, nan], nan_ok=True)


def test_a_single_response_has_strength_zero():
    assert committee_scores([[7.0]]).tolist() == [0.0]
    assert committee_scores([[7.0, math.nan]]).tolist() == pytest.approx([0.0, math.nan], nan_ok=True)
    assert committee_scores([[], []]).tolist() == []


# The judge


def test_scores_evidence_and_names(questions: Questions):
    backend = Scripted({"4": (2.0, 1.0, 3.0), "5": (-1.0, 0.0, -2.0), "long": (0.0, 0.5, 0.0)})
    given = replace(example("5", "4", "long"), tags={"subset": "x"})
    scored = committee(questions, backend)([given])[0]
    matrix = [[-1.0, 2.0, 0.0], [0.0, 1.0, 0.5], [-2.0, 3.0, 0.0]]
    assert values(scored) == pytest.approx(zermelo(votes_from_scores(matrix, [1, 1, 1])).tolist())
    assert sum(values(scored)) == pytest.approx(0)
    assert scored.scores[1].evidence == {"scores": [2.0, 1.0, 3.0], "votes": "soft"}
    assert [score.truncated for score in scored.scores] == [False, False, True]
    assert [score.label_mass for score in scored.scores] == [0.5] * 3
    assert scored.tags == {"subset": "x", "annotators": [f"wording {k} of model-0" for k in (1, 2, 3)]}
    assert replace(scored, scores=(), tags={"subset": "x"}) == given


def test_all_wordings_about_one_response_stand_together_in_one_call(questions: Questions):
    """Two examples, two models: one call to each with 3 x (2 + 1) requests; repeated responses are voted on once."""
    table = {"4": (2.0, 1.0, 3.0), "5": (-1.0, 0.0, -2.0)}
    first, second = Scripted(table, 0.5), Scripted({"4": (0.0, 0.0, 1.0), "5": (0.0, 4.0, 0.0)}, 0.7)
    scored = committee(questions, first, second)([example("5", "4", "5"), example("4", id="e2")])
    for backend in (first, second):
        assert len(backend.calls) == 1
        asked = [(request.group, request.text) for request in backend.calls[0]]
        assert asked == [("e1", "5")] * 3 + [("e1", "4")] * 3 + [("e2", "4")] * 3
    assert scored[0].tags["annotators"][:3] == ["wording 1 of model-0", "wording 1 of model-1", "wording 2 of model-0"]
    assert scored[0].scores[1].evidence["scores"] == [2.0, 0.0, 1.0, 0.0, 3.0, 1.0]
    assert scored[0].scores[0] == scored[0].scores[2]
    assert scored[0].scores[0].label_mass == pytest.approx(0.6)
    matrix = np.array([score.evidence["scores"] for score in scored[0].scores[:2]]).T
    assert values(scored[0])[:2] == pytest.approx(committee_scores(matrix).tolist())


def test_the_first_annotators(questions: Questions):
    """Four of six: both models with wording 1, both with wording 2."""
    models = [("a", Scripted({})), ("b", Scripted({}))]
    names = [annotator.name for annotator in annotators_of(models, questions, 4)]
    assert names == ["wording 1 of a", "wording 1 of b", "wording 2 of a", "wording 2 of b"]


def test_a_missing_score_has_its_reason(questions: Questions):
    backend = Scripted({"4": (2.0, 1.0, 3.0), "5": (0.0, math.nan, 0.0), "6": (1.0, 0.0, 0.0)})
    scored = committee(questions, backend)([example("4", "5", "6")])[0]
    assert scored.scores[1].reason == "no finite log-odds from wording 2 of model-0"
    assert math.isnan(scored.scores[1].value)
    assert scored.scores[1].evidence == {"scores": [0.0, None, 0.0], "votes": "soft"}
    assert values(scored)[0] == -values(scored)[2] > 0


@pytest.mark.parametrize("votes", ["soft", "hard"])
def test_the_evidence_gives_the_scores_again(votes: str, questions: Questions):
    backend = Scripted({"4": (2.0, 1.0, 3.0), "5": (0.0, math.nan, 0.0), "6": (1.0, 9.0, 0.0)})
    scored = committee(questions, backend, votes=votes)([example("4", "5", "6", "4")])[0]
    again = Example.from_json(json.loads(json.dumps(scored.to_json())))
    emptied = replace(again, scores=tuple(replace(score, value=9.0) for score in again.scores))
    assert values(rescore(emptied)) == pytest.approx(values(scored), nan_ok=True)
    other = committee(questions, backend, votes="hard" if votes == "soft" else "soft")([example("4", "5", "6", "4")])[0]
    assert abs(values(other)[0] - values(scored)[0]) > 0.01


def test_refusals(questions: Questions):
    backend = Scripted({})
    with pytest.raises(ConfigError, match=r"--annotators 7: there are 6 \(3 question wordings x 2 models\)"):
        committee(questions, backend, backend, annotators=7)
    with pytest.raises(ConfigError, match=r"--votes hard with a single annotator gives .* the same target"):
        committee(questions, backend, annotators=1, votes="hard")


# On a model


@pytest.mark.parametrize(("prompt", "share"), [("Is it?", 0.75), ("word " * 60, 0.5)])
def test_what_the_wordings_share_is_computed_once(
    prompt: str, share: float, questions: Questions, model_folder: Callable[..., str]
):
    """Three wordings about each of four responses; the scores are those of each wording asked by itself.

    A long response is shared by its three questions, a long prompt by all twelve.
    """
    backend = HFBackend(model_folder("llama"), BackendOptions(device="cpu"))
    texts = [f"{word} " * 20 for word in ("one", "two", "course", "Yes")]
    one = Example("e1", (Message("user", prompt),), "math", tuple(map(Response, texts)))
    alone = [YesNo(backend, questions.using(number))([one])[0] for number in range(3)]
    computed: list[int] = []
    backend.causal.get_input_embeddings().register_forward_hook(lambda _, ids, __: computed.append(ids[0].numel()))
    voted = JUDGES["committee"].make(JudgeSetup((backend,), questions, models=("m",)))([one])[0]
    judges = [annotator.judge for annotator in annotators_of([("m", backend)], questions)]
    whole = sum(len(backend.prompts.ask(judge.request(one, text)).ids) for judge in judges for text in texts)
    assert sum(computed) < share * whole
    for index, score in enumerate(voted.scores):
        assert score.evidence["scores"] == pytest.approx([single.scores[index].value for single in alone], abs=1e-4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, 30 prompts and 6 pairs."""
    here = tmp_path_factory.mktemp("committee")
    make_model(here / "one")
    make_model(here / "two", "qwen2")
    make_prompts(here / "prompts.jsonl", 30)
    pairs = [{"prompt": f"Is {i} it?", "chosen": f"Yes, {i}.", "rejected": "No."} for i in range(6)]
    (here / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return here


def test_bench_with_two_models(folder: Path, questions_file: Path, tmp_path: Path):
    judging = f"{folder / 'one'},{folder / 'two'}"
    options = ["--judge", "committee", "--judge-model", judging, "--questions", questions_file, "--annotators", 5]
    done("bench", *options, "--benchmark", folder / "pairs.jsonl", "--out", tmp_path / "out", "--quiet")
    rows = [Example.from_json(row) for row in read_rows(tmp_path / "out" / "rows.jsonl")]
    assert len(rows) == 6
    assert rows[0].tags["annotators"][-1] == f"wording 3 of {folder / 'one'}"
    for row in rows:
        assert [len(score.evidence["scores"]) for score in row.scores] == [5, 5]
        assert values(rescore(row)) == pytest.approx(values(row))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["judged_by"] == judging.split(",")
    assert results["unit"].startswith("log-strength, nats")
    right = [row.scores[0].value > row.scores[1].value for row in rows]  # the chosen response comes first
    assert {row.gold for row in rows} == {(0,)}
    assert results["figures"]["judge_strict"] == pytest.approx(sum(right) / 6)


@pytest.mark.parametrize("votes", ["soft", "hard"])
def test_align(votes: str, folder: Path, questions_file: Path, tmp_path: Path):
    """One round; targets are differences of strengths, and the evaluation asks the first wording alone."""
    small = ["--rounds", 1, "--max-new-tokens", 4, "--num-responses", 3, "--eval-samples", 1, "--keep-unfinished"]
    judge = ["--judge", "committee", "--votes", votes, "--questions", questions_file, "--loss", "irepo"]
    paths = ["--model", folder / "one", "--prompts", folder / "prompts.jsonl", "--out", tmp_path / "run"]
    done("align", *paths, *small, *judge, "--quiet")
    scored = [Example.from_json(row) for row in read_rows(tmp_path / "run" / "round-1" / "scored.jsonl")]
    assert summary(tmp_path / "run" / "round-1" / "scored.jsonl")["missing"] == 0
    for row in scored:
        assert values(row) == pytest.approx(values(rescore(row)))
    by_id = {row.id: row for row in scored}
    selected = [Example.from_json(row) for row in read_rows(tmp_path / "run" / "round-1" / "selected.jsonl")]
    assert selected
    for row in selected:
        strengths = values(by_id[row.id])
        assert row.strengths[0] - row.strengths[-1] == pytest.approx(max(strengths) - min(strengths))
    assert "committee: the votes" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--judge", "committee", "--votes", "hard"], "--votes hard with a single annotator"),
        (["--judge", "committee", "--annotators", "2"], "--annotators 2: there are 1 (1 question wordings x 1 models)"),
        (["--votes", "hard"], "--votes has no effect with --judge yes-no"),
        (["--annotators", "2"], "--annotators has no effect with --judge yes-no"),
        (["--judge", "committee", "--in-place"], "--in-place has no effect with --judge committee"),
        (["--judge-model", "a/b,c/d"], "--judge-model a/b,c/d: the yes-no judge asks one model"),
        (["--judge", "committee", "--judge-model", "a/b,a/b"], "--judge-model a/b,a/b: names a model twice"),
    ],
)
def test_options_that_do_nothing(
    options: list[str], message: str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    paths = ["--model", str(folder / "one"), "--benchmark", str(folder / "pairs.jsonl"), "--out", str(tmp_path / "o")]
    if "committee" in options:
        options = [*options, "--questions", str(_single(tmp_path))]
    assert main(["bench", *paths, *options]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith(f"selfjudge: {message}")


def _single(folder: Path) -> Path:
    """One wording of every question."""
    head = BUILT_IN.read_text(encoding="utf-8").partition("[questions]")[0]
    path = folder / "one.toml"
    path.write_text(f"{head}[questions]\n" + "".join(f'{name} = "Is it?"\n' for name in CATEGORIES))
    return path
