"""`selfjudge export`: every format reads back to the same pairs, and no half-written file is left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import done

from selfjudge.checks import build_checked
from selfjudge.cli import main
from selfjudge.config import ExportConfig
from selfjudge.errors import ConfigError
from selfjudge.pair_files import FILE_TYPES
from selfjudge.pair_formats import EXTRAS, PAIR_FORMATS, Pair, pairs_of
from selfjudge.readers import read_examples
from selfjudge.records import Example, Message, Response, Score
from selfjudge.values import RowError

TALK = (
    *(Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello")),
    Message("user", "What color is\nthe sky? 世界"),
)
ONE = (Message("user", "2 + 2?"),)
SELECTED = Example(
    "talk",
    TALK,
    responses=(Response("Blue."), Response("Green.")),
    scores=(Score(3.5, 0.9), Score(-1.0, 0.9)),
    strengths=(2.25, -2.25),
)
GOLD = Example("sum", ONE, responses=(Response("5"), Response("4")), gold=(1,))


def write(path: Path, examples: list[Example]) -> Path:
    path.write_text("".join(json.dumps(example.to_json()) + "\n" for example in examples), encoding="utf-8")
    return path


def export(folder: Path, examples: list[Example], name: str, out: str = "pairs.jsonl") -> Path:
    source = write(folder / "input.jsonl", examples)
    done("export", "--quiet", "--input", source, "--out", folder / out, "--format", name)
    return folder / out


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def essence(example: Example) -> tuple[Any, ...]:
    """The id, the prompt, the chosen and the rejected text."""
    assert example.gold is not None
    (right,) = example.gold
    return example.id, example.messages, example.responses[right].text, example.responses[1 - right].text


@pytest.mark.parametrize("suffix", FILE_TYPES)
@pytest.mark.parametrize("name", PAIR_FORMATS)
def test_every_format_reads_back(name: str, suffix: str, tmp_path: Path) -> None:
    """Scores and the target come back too: 3.5 and -1 of the judge, z = 2.25 + 2.25 nats; none of the pair by gold."""
    selected = SELECTED if name != "trl-text" else Example("talk", ONE, **_rest(SELECTED))
    out = export(tmp_path, [selected, GOLD], name, f"pairs{suffix}")
    first, second = read_examples(out)
    assert essence(first) == ("talk", selected.messages, "Blue.", "Green.")
    assert essence(second) == ("sum", ONE, "4", "5")
    assert ([score.value for score in first.scores], first.strengths) == ([3.5, -1.0], (2.25, -2.25))
    assert (second.scores, second.strengths) == ((), ())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input.jsonl", out.name, f"{out.name}.meta.json"]


def _rest(example: Example) -> dict[str, Any]:
    return {"responses": example.responses, "scores": example.scores, "strengths": example.strengths}


ASKED = [{"role": "user", "content": "2 + 2?"}]
FOUR, FIVE = ({"role": "assistant", "content": text} for text in ("4", "5"))
WRITTEN = {
    "trl": {"prompt": ASKED, "chosen": [FOUR], "rejected": [FIVE]},
    "trl-text": {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
    "llama-factory": {
        "conversations": [{"from": "human", "value": "2 + 2?"}],
        "chosen": {"from": "gpt", "value": "4"},
        "rejected": {"from": "gpt", "value": "5"},
    },
    "axolotl": {"messages": ASKED, "chosen": FOUR, "rejected": FIVE},
    "openrlhf": {"prompt": ASKED, "chosen": [FOUR], "rejected": [FIVE]},
    "nemo-rl": {
        "context": ASKED,
        "completions": [{"rank": 0, "completion": [FOUR]}, {"rank": 1, "completion": [FIVE]}],
    },
    "ms-swift": {"messages": [*ASKED, FOUR], "rejected_response": "5"},
    "ultrafeedback": {"prompt": "2 + 2?", "chosen": [*ASKED, FOUR], "rejected": [*ASKED, FIVE]},
}


@pytest.mark.parametrize("name", PAIR_FORMATS)
def test_what_each_program_reads(name: str) -> None:
    """The columns as the programs document them, see tests/test_formats.py for where."""
    row = PAIR_FORMATS[name](Pair("sum", ONE, "4", "5", 1.0, -0.5, 1.5))
    assert row == {"id": "sum", **WRITTEN[name], "score_chosen": 1.0, "score_rejected": -0.5, "margin_nats": 1.5}
    assert "margin" not in row  # TRL's and OpenRLHF's reward trainers would add it to their loss
    assert [PAIR_FORMATS[name](Pair("sum", ONE, "4", "5"))[column] for column in EXTRAS] == [None] * 3


def test_a_config_names_the_formats_that_there_are(tmp_path: Path) -> None:
    source = write(tmp_path / "input.jsonl", [GOLD])
    values = {"input": str(source), "out": str(tmp_path / "pairs.jsonl")}
    assert [build_checked(ExportConfig, values | {"format": name}).format for name in PAIR_FORMATS] == [*PAIR_FORMATS]
    with pytest.raises(ConfigError, match="did you mean axolotl"):
        build_checked(ExportConfig, values | {"format": "axoltl"})


def test_every_better_one_with_every_worse_one() -> None:
    """Strengths 2, 1, 1, -4: 0 beats 1, 2, 3 and both 1 and 2 beat 3; of gold 0 and 2 each beats the two others."""
    responses = tuple(map(Response, "abcd"))
    ranked = [*pairs_of(Example("k", ONE, responses=responses, strengths=(2.0, 1.0, 1.0, -4.0)))]
    assert [(pair.chosen + pair.rejected, pair.margin) for pair in ranked] == [
        *(("ab", 1.0), ("ac", 1.0), ("ad", 6.0), ("bd", 5.0), ("cd", 5.0))
    ]
    assert [pair.id for pair in ranked] == ["k-0-1", "k-0-2", "k-0-3", "k-1-3", "k-2-3"]
    right = [*pairs_of(Example("k", ONE, responses=responses, gold=(0, 2)))]
    assert [pair.chosen + pair.rejected for pair in right] == ["ab", "ad", "cb", "cd"]
    with pytest.raises(RowError, match=r"k has neither strengths \(`selfjudge select` adds them\) nor chosen"):
        next(pairs_of(Example("k", ONE, responses=responses)))


def test_rows_without_a_pair_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = Example("same", ONE, responses=(Response("4"), Response("4")), gold=(0,))
    none = Example("none", ONE, responses=(Response("4"), Response("5")), gold=())
    source = write(tmp_path / "input.jsonl", [GOLD, same, none])
    command = ["export", "--quiet", "--json", "--input", str(source), "--out", str(tmp_path / "pairs.json")]
    assert main(command) == 0
    dropped = {"the same text twice": 1, "no response better than another": 1}
    assert json.loads(capsys.readouterr().out) == {"prompts": 1, "pairs": 1, "dropped": dropped}
    written = (tmp_path / "pairs.json").read_bytes()
    assert main(command) == 0  # finished: nothing is done again
    assert json.loads(capsys.readouterr().out)["pairs"] == 1
    assert (tmp_path / "pairs.json").read_bytes() == written


def refused(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    assert main(["export", "--quiet", *map(str, words)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_nothing_half_written_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The third row ends the command: the first two are not left, and an old file stays as it was."""
    bad = Example("bad", ONE, responses=(Response("4"), Response("5")))
    source, out = write(tmp_path / "input.jsonl", [GOLD, SELECTED, bad]), tmp_path / "pairs.jsonl"
    assert "bad has neither strengths" in refused(capsys, "--input", source, "--out", out)
    assert [path.name for path in tmp_path.iterdir()] == ["input.jsonl"]
    talk = refused(capsys, "--input", write(source, [GOLD, SELECTED]), "--out", out, "--format", "trl-text")
    assert "talk cannot be one text: its prompt has the turns system, user, assistant, user; use --format trl" in talk
    none = Example("none", ONE, responses=(Response("4"), Response("5")), gold=())
    message = refused(capsys, "--input", write(source, [none]), "--out", out)
    assert "no pair to write: 1 with no response better than another" in message
    assert [path.name for path in tmp_path.iterdir()] == ["input.jsonl"]


def test_a_file_that_is_something_else_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = export(tmp_path, [GOLD], "trl")
    source, before = tmp_path / "input.jsonl", out.read_bytes()
    changed = refused(capsys, "--input", source, "--out", out, "--format", "axolotl")
    assert 'format: was "trl", now "axolotl"' in changed
    assert "input input: was sha256" in refused(capsys, "--input", write(source, [SELECTED]), "--out", out)
    assert out.read_bytes() == before
    own = tmp_path / "own.json"
    own.write_text("[]")
    assert "own.json.meta.json does not: not an output of selfjudge" in refused(capsys, "--input", source, "--out", own)
    assert own.read_text() == "[]"


def test_a_step_beside_it_keeps_its_meta(tmp_path: Path) -> None:
    """`selected.json` from `selected.jsonl`: both have a meta of their own."""
    (tmp_path / "input.meta.json").write_text('{"step": "select", "done": true}')
    export(tmp_path, [GOLD], "trl", "input.json")
    assert json.loads((tmp_path / "input.meta.json").read_text())["step"] == "select"
    assert json.loads((tmp_path / "input.json.meta.json").read_text())["step"] == "export"


def test_an_interrupted_export_is_done_again(tmp_path: Path) -> None:
    """Killed before the last rename: the meta says not done, the rows may be old ones."""
    out = export(tmp_path, [GOLD], "trl")
    whole, meta = out.read_bytes(), tmp_path / "pairs.jsonl.meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"done": False}))
    out.write_text("old\n")
    (tmp_path / "pairs.jsonl.tmp").write_text("half a")
    assert export(tmp_path, [GOLD], "trl").read_bytes() == whole
    assert json.loads(meta.read_text())["done"]
    assert not (tmp_path / "pairs.jsonl.tmp").exists()


def test_parquet_scores_are_numbers_whichever_come_first(tmp_path: Path) -> None:
    """1,200 pairs without a score before one that has them: two batches, one schema."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    many = [Example(str(i), ONE, responses=GOLD.responses, gold=(1,)) for i in range(1200)]
    out = export(tmp_path, [*many, SELECTED], "trl", "pairs.parquet")
    found = parquet.read_table(out)
    assert [found.schema.field(name).type for name in EXTRAS] == [pyarrow.float64()] * 3
    assert found["margin_nats"].to_pylist() == [None] * 1200 + [4.5]


@pytest.mark.parametrize(
    ("out", "problem"),
    [
        ("pairs.csv", "the name must end in .jsonl, .json, .parquet"),
        ("-", "the name must end in .jsonl, .json, .parquet"),
        ("folder.json", "is a folder; give a file"),
        ("input.jsonl/pairs.json", "input.jsonl is not a folder"),
        ("input.jsonl", "is the input; give another file"),
    ],
)
def test_outputs_that_cannot_be(out: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "input.jsonl", [GOLD])
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ConfigError) as error:
        build_checked(ExportConfig, {"input": "input.jsonl", "out": out})
    assert str(error.value) == f"--out {out}: {problem}"


def test_an_input_must_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "--input", tmp_path / "none.jsonl", "--out", tmp_path / "pairs.jsonl")
    assert "none.jsonl: no such file" in message


def test_parquet_needs_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "input.jsonl", [GOLD])
    monkeypatch.setattr("selfjudge.checks.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'selfjudge\[parquet\]'"):
        build_checked(ExportConfig, {"input": str(source), "out": str(tmp_path / "pairs.parquet")})


def test_real_pairs(shared_data: Path, tmp_path: Path) -> None:
    """RM-Bench: three right answers against three wrong ones, less those with the same text."""
    source = shared_data / "rm_bench" / "chat_filtered.json"
    done("export", "--quiet", "--input", source, "--out", tmp_path / "pairs.jsonl", "--format", "ms-swift")
    expected = {
        (example.messages, right.text, wrong.text)
        for example in read_examples(source)
        for right in example.responses[:3]
        for wrong in example.responses[3:]
        if right.text != wrong.text
    }
    found = [essence(example)[1:] for example in read_examples(tmp_path / "pairs.jsonl")]
    assert set(found) == expected
    assert len(found) > 1000
